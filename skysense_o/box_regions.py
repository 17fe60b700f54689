"""Masks for boxes, taken from the model's own label maps.

People draw a box tightly around a whole thing. So of the regions inside the box, they mean the one that reaches its
four sides, fills much of it, and does not continue outside.

Shape letters: H W pixels. A box is half-open XYXY.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from skysense_o.clicks import box_from_mask

CLASSES = (
    ("water", "bare land", "road", "building", "vegetation"),
    (
        "tree", "grass", "crop field", "paved area", "road", "runway", "bare land", "beach", "sea", "river", "lake",
        "building", "house", "storage tank", "tennis court", "swimming pool", "sports field", "bridge", "pier",
        "airplane", "ship", "boat", "car", "truck", "railway",
    ),
)  # fmt: skip
"""Two lists of classes, one coarse and one fine. Each list gives a label map, and each region of it is a candidate."""
LONGEST = 1024
"""Longest side of a label map, in pixels; small, so that a mask appears while the user drags the box."""
SMALLEST = 0.02
"""Area of the smallest candidate, as a share of the box."""
AREA, OUTSIDE = 0.75, 0.75
"""Weights in a candidate's score (see `BoxRegions.mask`), chosen on Dubai's training scenes 1 to 4."""


class BoxRegions:
    """The regions of one or more label maps of an image."""

    def __init__(self, label_maps: Sequence[np.ndarray], size: tuple[int, int] | None = None) -> None:
        """
        Args:
            label_maps: class indices (h,w), small non-negative integers; all maps have one size.
            size: (H,W) of the image; None if the maps have its size.
        """
        self.size = size or label_maps[0].shape
        self.maps = [(labels, *_connected(labels)) for labels in label_maps]

    @property
    def arrays(self) -> list[np.ndarray]:
        """All arrays of this object, to measure the memory that they take."""
        return [array for arrays in self.maps for array in arrays]

    def mask(self, box: Sequence[float]) -> np.ndarray:
        """The region that a box is drawn around.

        A candidate is the area that a class covers inside the box, or the largest connected part of this area. Its
        score is the share of the box that the candidate's bounding box fills, plus `AREA` times the share of the box
        that the candidate covers, minus `OUTSIDE` times the share of its connected regions that lies outside the box.

        Args:
            box: (x0, y0, x1, y1) inside the image, not empty.

        Returns:
            bool (H,W), inside the box (up to a pixel of the map).
        """
        scales = [map_side / side for map_side, side in zip(self.maps[0][0].shape[::-1], self.size[::-1])] * 2
        corners = [side * scale for side, scale in zip(box, scales)]
        (x0, y0), (x1, y1) = map(int, corners[:2]), (int(np.ceil(v - 1e-6)) for v in corners[2:])
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)  # the box may be thinner than rounding errors
        best, chosen = -np.inf, None
        for labels, ids, areas in self.maps:
            crop, parts = labels[y0:y1, x0:x1], ids[y0:y1, x0:x1]
            values, counts = np.unique(crop, return_counts=True)
            for value in values[counts >= min(SMALLEST * crop.size, counts.max())]:
                whole = crop == value
                for candidate in (whole, _largest_part(whole)):
                    own = np.unique(parts[candidate])
                    outside = 1 - np.isin(parts, own).sum() / areas[own].sum()
                    left, top, right, bottom = box_from_mask(candidate)
                    reach = (right - left) * (bottom - top)
                    score = (reach + AREA * candidate.sum()) / whole.size - OUTSIDE * outside
                    if score > best:
                        best, chosen = score, candidate
        mask = np.zeros(self.maps[0][0].shape, np.uint8)
        mask[y0:y1, x0:x1] = chosen
        return cv2.resize(mask, self.size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)


def _connected(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the connected regions of equal labels: ids (H,W), and the pixels of each id."""
    ids, count = np.zeros(labels.shape, np.int32), 0
    for value in np.unique(labels):
        number, parts = cv2.connectedComponents((labels == value).astype(np.uint8), connectivity=8)
        ids[parts > 0] = parts[parts > 0] + (count - 1)
        count += number - 1
    return ids, np.bincount(ids.ravel(), minlength=count)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
