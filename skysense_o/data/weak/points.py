"""Labels from points (Bearman et al., What's the point, ECCV 2016).

A small disc around a point is labelled as the class, and pixels far from all points as "not the class". The pixels in
between are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt

from skysense_o.sample import IGNORE


def point_labels(
    size: tuple[int, int], points: Sequence[Sequence[float]], classes: int, disc: float, far: float
) -> np.ndarray:
    """Make a label image from points, uint8 (H,W), with the label values of the module `box_masks`.

    Args:
        size: (H,W). points: x, y, class, all of one class. classes: number of classes.
        disc: radius in pixels of the positive disc around a point.
        far: distance in pixels; pixels at least this far from all points are negative. 0: no pixel is negative.
    """
    labels = np.full(size, IGNORE, np.uint8)
    if not points:
        return labels
    c = int(points[0][2])
    away = np.ones(size, bool)
    for x, y, _ in points:
        away[min(size[0] - 1, max(0, int(y))), min(size[1] - 1, max(0, int(x)))] = False
    distance = distance_transform_edt(away)
    if far:
        labels[distance >= far] = classes + c
    labels[distance <= disc] = c
    return labels
