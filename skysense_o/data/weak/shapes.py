"""Labels from outlines: polygons and circles that were drawn around objects."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from skysense_o.sample import IGNORE

UNKNOWN_SHAPE = -1
"""The class id of shapes inside of which nothing is known."""
FINER = 4  # polygons are filled in a larger image, because OpenCV fills every pixel that an edge touches


def shape_labels(size: tuple[int, int], shapes: Sequence[dict], classes: int) -> np.ndarray:
    """Make a label image from shapes, uint8 (H,W): c in a shape of class c, 2 * `classes` outside of all shapes.

    Later shapes are drawn over earlier shapes. Pixels outside of a shape but at most `margin` pixels away from it are
    IGNORE, even if they are in a shape of another class. All pixels in shapes of class UNKNOWN_SHAPE are IGNORE too. A
    polygon within another polygon of the same shape is a hole.

    Args:
        size: (H,W).
        shapes: dicts with "class" (its id), "polygons", "circles" and "margin", see `read_shapes`.
        classes: number of classes.
    """
    labels = np.full(size, 2 * classes, np.uint8)
    masks = [shape_mask(size, shape) for shape in shapes]
    for shape, mask in zip(shapes, masks):
        if shape["class"] != UNKNOWN_SHAPE:
            labels[mask > 0] = shape["class"]
    for shape, mask in zip(shapes, masks):
        reach = 2 * round(shape["margin"]) + 1
        near = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))) > mask
        labels[near & (labels != shape["class"])] = IGNORE
        if shape["class"] == UNKNOWN_SHAPE:
            labels[mask > 0] = IGNORE
    return labels


def shape_mask(size: tuple[int, int], shape: dict) -> np.ndarray:
    """uint8 (H,W), 1 inside of the polygons and circles, 0 outside. (0.5, 0.5) is the middle of the first pixel."""
    fine = np.zeros((size[0] * FINER, size[1] * FINER), np.uint8)
    polygons = [np.round(np.array(p, np.float64) * FINER - 0.5).astype(np.int32) for p in shape["polygons"]]
    if polygons:
        cv2.fillPoly(fine, polygons, 1)
    mask = fine[FINER // 2 :: FINER, FINER // 2 :: FINER].copy()
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    for across, down, radius in shape["circles"]:
        mask[(x - across) ** 2 + (y - down) ** 2 <= radius**2] = 1
    return mask


def shape_boxes(shapes: Sequence[dict]) -> list[list[float]]:
    """The box around each polygon and circle: x0, y0, x1, y1, class. Circles may reach out of the image."""
    boxes = []
    for shape in shapes:
        if shape["class"] == UNKNOWN_SHAPE:
            continue
        for polygon in shape["polygons"]:
            (x0, y0), (x1, y1) = np.min(polygon, 0), np.max(polygon, 0)
            boxes.append([float(x0), float(y0), float(x1), float(y1), shape["class"]])
        boxes += [[x - r, y - r, x + r, y + r, shape["class"]] for x, y, r in shape["circles"]]
    return boxes
