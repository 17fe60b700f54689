"""Make clicks and boxes from known masks, to train and evaluate prompts; find the part of a mask that a click means.

Nothing here is random: the same masks give the same clicks.

Shape letters: H W pixels. A point is (x, y) of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from skysense_o.sample import IGNORE


def components(labels: np.ndarray, min_pixels: int) -> list[np.ndarray]:
    """Split each class into its connected components (8-connectivity).

    Args:
        labels: (H,W) class indices; pixels with IGNORE belong to no component.
        min_pixels: smaller components are left out.

    Returns:
        masks bool (H,W), ordered by class, then from top to bottom.

    >>> [int(mask.sum()) for mask in components(np.array([[0, 1, 0], [0, 1, 0]]), min_pixels=1)]
    [2, 2, 2]
    """
    masks = []
    for value in np.unique(labels[labels != IGNORE]):
        count, parts, stats, _ = cv2.connectedComponentsWithStats((labels == value).astype(np.uint8), connectivity=8)
        masks += [parts == i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= min_pixels]
    return masks


def parts_at(mask: np.ndarray, points: Sequence[Sequence[int]]) -> np.ndarray:
    """The connected parts of a mask (8-connectivity) that contain at least one of the points.

    Args:
        mask: bool (H,W).
        points: (x, y) of pixels.

    Returns:
        bool (H,W); the mask itself if no point lies in it.

    >>> parts_at(np.array([[True, False, True]]), [(2, 0)]).tolist()
    [[False, False, True]]
    """
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    hit = {int(parts[y, x]) for x, y in points} - {0}
    return np.isin(parts, list(hit)) if hit else mask


def middle(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from its edge, which is where people click.

    The border of the image counts as an edge.

    >>> middle(np.ones((3, 5), bool))
    (1, 1)
    """
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x), int(y)


def corrective(target: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> tuple[int, int, int]:
    """The next corrective click, in the middle of the largest connected error (Kirillov et al. 2023).

    Args:
        target, predicted: bool (H,W).
        known: bool (H,W); False where the truth is unknown and an error does not count.

    Returns:
        (x, y, label): label 1 (foreground) on a false negative, 0 (background) on a false positive. If there is no
        error, a foreground click in the middle of the target.
    """
    false_negative, false_positive = target & ~predicted & known, predicted & ~target & known
    sizes = [_largest(error) for error in (false_negative, false_positive)]
    if not any(size for size, _ in sizes):
        return (*middle(target), 1)
    inside = sizes[0][0] >= sizes[1][0]
    return (*middle(sizes[0][1] if inside else sizes[1][1]), int(inside))


def box_from_mask(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The bounding box of a mask.

    Args:
        mask: bool (H,W), at least one pixel.

    Returns:
        (x0, y0, x1, y1), half-open: the last pixel inside is (x1 - 1, y1 - 1).

    Raises:
        IndexError: the mask is empty.

    >>> mask = np.zeros((20, 30), bool)
    >>> mask[2:8, 3:9] = True
    >>> box_from_mask(mask)
    (3, 2, 9, 8)
    """
    x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def box_between(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float, float, float]:
    """The half-open box from one corner pixel to the opposite one, both inside.

    >>> box_between((70, 50), (10, 20))
    (10, 20, 71, 51)
    """
    (x0, x1), (y0, y1) = sorted((a[0], b[0])), sorted((a[1], b[1]))
    return x0, y0, x1 + 1, y1 + 1


def _largest(error: np.ndarray) -> tuple[int, np.ndarray]:
    """Pixel count and mask of the largest connected component; (0, error) if there is none."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(error.astype(np.uint8), connectivity=8)
    if count == 1:
        return 0, error
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return int(stats[best, cv2.CC_STAT_AREA]), parts == best
