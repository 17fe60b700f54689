"""EXIF orientation: rotate and mirror stored images so that they are upright.

Shape letters: H W pixels.
"""

from __future__ import annotations

import numpy as np

UPRIGHT = 1


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored array upright.

    Args:
        array: (H,W,...).
        orientation: 1 to 8 as in EXIF; other values mean upright.

    Returns:
        A view of the array.

    >>> upright(np.array([[1, 2]]), 6).tolist()  # rotated by 90 degrees
    [[1], [2]]
    """
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def as_stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `upright`: a view of an upright array in stored orientation. Values that are written into the view
    appear upright in `array`.
    """
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """The size (H,W) of an upright image, from its stored size (H,W)."""
    return size[::-1] if orientation in (5, 6, 7, 8) else size
