"""Masks of objects with boxes, by GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004) or as ellipses.

For C classes, a label image that is made from boxes has 2 C + 1 values. c: inside an object of class c. C + c: not
class c, namely in the box of an object but not in its mask, or close around the box. 2 C: outside of all boxes. Pixels
about which nothing is known are IGNORE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from skysense_o.sample import IGNORE

LEAST, MOST = 0.12, 0.97  # smallest and largest share of its box that a mask may fill; other masks are rejected
ROUNDS = 4  # iterations of GrabCut
LONGEST = 160  # longest side of a box for GrabCut, in pixels; larger boxes are reduced
SMALLEST = 48  # shortest longer side of a box for GrabCut, in pixels; smaller boxes are enlarged

BoxMask = Callable[[np.ndarray, tuple[int, int, int, int]], "np.ndarray | None"]


def grabcut_mask(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """Segment the object in a box by its colours; everything outside of the box is background.

    Args:
        image: uint8 (H,W,3). box: half-open XYXY.

    Returns:
        bool (y1-y0,x1-x0), or None if the mask fills less than LEAST or more than MOST of the box.
    """
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    margin = max(4, round(0.35 * max(width, height)))
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    around = image[top : y1 + margin, left : x1 + margin]
    longest = max(width, height)
    scale = min(1.0, LONGEST / longest) if longest > SMALLEST else SMALLEST / longest
    size = max(8, round(around.shape[1] * scale)), max(8, round(around.shape[0] * scale))
    small = cv2.resize(around, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    across, down = size[0] / around.shape[1], size[1] / around.shape[0]
    place = (
        round((x0 - left) * across),
        round((y0 - top) * down),
        max(2, round(width * across)),
        max(2, round(height * down)),
    )
    kinds = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    inside = (slice(place[1], place[1] + place[3]), slice(place[0], place[0] + place[2]))
    kinds[inside] = cv2.GC_PR_FGD
    if (kinds == cv2.GC_BGD).sum() < 16 or (kinds == cv2.GC_PR_FGD).sum() < 16:
        return None
    cv2.setRNGSeed(0)
    cv2.grabCut(small, kinds, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(kinds[inside], (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    mask = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR if scale > 1 else cv2.INTER_NEAREST) > 0
    return mask if LEAST <= mask.mean() <= MOST else None


def ellipse_mask(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The largest ellipse in a box, for round objects such as tree crowns. Arguments and result: see `grabcut_mask`."""
    width, height = box[2] - box[0], box[3] - box[1]
    y, x = np.mgrid[:height, :width]
    return ((x + 0.5) / width * 2 - 1) ** 2 + ((y + 0.5) / height * 2 - 1) ** 2 <= 1


def box_labels(image: np.ndarray, boxes: Sequence[Sequence[float]], classes: int, mask_of: BoxMask) -> np.ndarray:
    """Make a label image from boxes, uint8 (H,W), with the values that this module's docstring describes.

    Large boxes are drawn first, so that small boxes inside them remain. If the mask of a box is rejected, its whole box
    is IGNORE. In boxes wider and higher than 24 pixels, the border of the mask is IGNORE too. The rim around a box, as
    wide as a tenth of the longer side, gets the value C + c.

    Args:
        image: uint8 (H,W,3). boxes: x0, y0, x1, y1, class. classes: C.
    """
    height, width = image.shape[:2]
    labels = np.full((height, width), 2 * classes, np.uint8)
    whole = sorted((_whole(box, width, height) for box in boxes), key=lambda b: (b[0] - b[2]) * (b[3] - b[1]))
    whole = [b for b in whole if b[2] - b[0] >= 3 and b[3] - b[1] >= 3]
    for x0, y0, x1, y1, c in whole:
        rim = max(2, round(0.1 * max(x1 - x0, y1 - y0)))
        labels[max(0, y0 - rim) : y1 + rim, max(0, x0 - rim) : x1 + rim] = classes + c
    for x0, y0, x1, y1, _ in whole:
        labels[y0:y1, x0:x1] = IGNORE
    for x0, y0, x1, y1, c in whole:
        mask = mask_of(image, (x0, y0, x1, y1))
        part = labels[y0:y1, x0:x1]
        if mask is None:
            part[:] = IGNORE
            continue
        edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
        part[~mask & ((part == IGNORE) | (part == 2 * classes))] = classes + c
        part[mask] = c
        if min(x1 - x0, y1 - y0) > 24:
            part[edge] = IGNORE
    return labels


def _whole(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int, int]:
    x0, y0, x1, y1, c = box
    return max(0, round(x0)), max(0, round(y0)), min(width, round(x1)), min(height, round(y1)), int(c)
