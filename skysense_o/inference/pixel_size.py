"""Reduce images whose pixels are much smaller on the ground than those that a model was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FINER = 2.0
"""An image is reduced if its pixels are at least this many times finer than the finest pixels of training."""


def reduction(pixel_size: float | None, known: Sequence[float]) -> float:
    """The factor by which an image is resized before it is segmented: 1 (unchanged), or less than 1 / FINER.

    The pixels of the reduced image are as large on the ground as the finest pixels of training.

    Args:
        pixel_size: metres on the ground per pixel of the image; None if unknown.
        known: least and greatest metres per pixel of the training images; empty if unknown.

    Raises:
        ValueError: the pixel size is not a number above 0.

    >>> reduction(0.025, [0.1, 0.6]), reduction(0.06, [0.1, 0.6]), reduction(None, [0.1, 0.6])
    (0.25, 1.0, 1.0)
    """
    if pixel_size is None:
        return 1.0
    if not (math.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"pixel size {pixel_size} is out of range: metres per pixel, above 0")
    if not known or pixel_size * FINER > known[0]:
        return 1.0
    return pixel_size / known[0]


def reduced(rgb: np.ndarray, factor: float) -> np.ndarray:
    """Reduce an image by averaging over areas.

    Args:
        rgb: uint8 (H,W,3).
        factor: see `reduction`.

    Returns:
        uint8 (h,w,3), at least 1 x 1; `rgb` itself for a factor of 1.
    """
    if factor == 1:
        return rgb
    import cv2  # slow to import, and not needed to check a command line (`reduction`)

    height, width = (max(1, round(side * factor)) for side in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)


def at_full_size(labels: np.ndarray, score: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge labels and scores (h,w) of a reduced image to (H,W): the nearest label, interpolated scores."""
    if labels.shape == size:
        return labels, score
    import cv2

    width_height = size[::-1]
    return (
        cv2.resize(labels, width_height, interpolation=cv2.INTER_NEAREST_EXACT),
        cv2.resize(score, width_height, interpolation=cv2.INTER_LINEAR),
    )
