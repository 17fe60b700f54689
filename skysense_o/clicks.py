"""Clicks and boxes as a person would give them, from a mask that is known. H W pixels; points are x,y of a pixel.

They train the prompts and evaluate them. Nothing here is random: the same masks give the same clicks.
"""

from __future__ import annotations

import cv2
import numpy as np

from skysense_o.sample import IGNORE


def components(labels: np.ndarray, least: int) -> list[np.ndarray]:
    """(H,W) class ids -> the connected parts (eight neighbours) of each class, ignored pixels aside.

    Args:
        least: pixels a part must have.

    Returns:
        bool (H,W) each, by class, then from top to bottom.
    """
    found = []
    for value in np.unique(labels[labels != IGNORE]):
        count, parts, stats, _ = cv2.connectedComponentsWithStats((labels == value).astype(np.uint8), connectivity=8)
        found += [parts == i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= least]
    return found


def middle(mask: np.ndarray) -> tuple[int, int]:
    """The pixel of a mask that lies farthest from its rim, where people click; the image's rim counts too."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x), int(y)


def corrective(target: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> tuple[int, int, int]:
    """The next click: in the middle of the largest error, 1 (inside) if it lacks there, 0 (outside) if it is too much.

    A mask without an error is clicked in its own middle.
    """
    lacking, too_much = target & ~predicted & known, predicted & ~target & known
    sizes = [_largest(error) for error in (lacking, too_much)]
    if not any(size for size, _ in sizes):
        return (*middle(target), 1)
    inside = sizes[0][0] >= sizes[1][0]
    return (*middle(sizes[0][1] if inside else sizes[1][1]), int(inside))


def box_from_mask(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The first and the last pixel of a mask, x0,y0,x1,y1, both within."""
    x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(x[0]), int(y[0]), int(x[-1]), int(y[-1])


def _largest(error: np.ndarray) -> tuple[int, np.ndarray]:
    count, parts, stats, _ = cv2.connectedComponentsWithStats(error.astype(np.uint8), connectivity=8)
    if count == 1:
        return 0, error
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return int(stats[best, cv2.CC_STAT_AREA]), parts == best
