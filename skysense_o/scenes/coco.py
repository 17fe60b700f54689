"""Regions in COCO's formats: annotations with run-length masks, and boxes with scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import rasterio
from pycocotools import mask
from rasterio.windows import Window

from skysense_o.scenes.regions import Regions

COLUMNS = 256
"""Columns of the scene that are read at a time."""
IMAGE_ID = 1
"""Id of the only image in a file, because a file describes one scene."""


def coco_dataset(regions: Regions, size: tuple[int, int], classes: Sequence[str], first: int, file_name: str) -> dict:
    """Build COCO's annotation file: one annotation per region, with a `score` in addition to COCO's keys.

    Args:
        size: (H,W) of the scene.
        classes: class per id.
        first: id of the first class that becomes a category: 1 if id 0 is "none", else 0.
        file_name: file name of the scene.

    Raises:
        ValueError: the scene has more pixels than COCO's 32-bit run lengths can count.
    """
    if size[0] * size[1] >= 2**32:
        raise ValueError(f"{size[0]} x {size[1]} pixels are too many for COCO's run lengths: save gpkg or geojson")
    annotations = [
        {**box, "id": i + 1, "segmentation": rle, "area": int(n), "iscrowd": 0}
        for i, (box, rle, n) in enumerate(zip(coco_boxes(regions), _rle(regions, size), regions.pixels))
    ]
    return {
        "images": [{"id": IMAGE_ID, "file_name": file_name, "height": size[0], "width": size[1]}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes) if i >= first],
        "annotations": annotations,
    }


def coco_boxes(regions: Regions) -> list[dict]:
    """Build COCO's result list: per region image_id, category_id, bbox (x, y, width, height in pixels) and score."""
    return [
        {
            "image_id": IMAGE_ID,
            "category_id": int(label),
            "bbox": [int(x0), int(y0), int(x1 - x0), int(y1 - y0)],
            "score": round(float(score), 4),
        }
        for label, score, (x0, y0, x1, y1) in zip(regions.label, regions.score, regions.boxes)
    ]


def _rle(regions: Regions, size: tuple[int, int]) -> list[dict]:
    """Run-length masks of all regions. COCO counts column by column, so COLUMNS columns are read at a time."""
    parts = []
    with rasterio.open(regions.path) as file:
        for x in range(0, size[1], COLUMNS):
            width = min(COLUMNS, size[1] - x)
            flat = file.read(1, window=Window(x, 0, width, size[0])).T.ravel()
            starts = np.flatnonzero(np.diff(flat, prepend=-1))
            lengths = np.diff(starts, append=len(flat))
            region = flat[starts]
            inside = region > 0
            runs = region[inside], starts[inside] + x * size[0], lengths[inside]
            parts.append(np.stack(runs, axis=1).astype(np.int64))
    table = np.concatenate([np.empty((0, 3), np.int64), *parts])
    table = table[np.argsort(table[:, 0], kind="stable")]
    ends = np.searchsorted(table[:, 0], np.arange(1, len(regions) + 2))
    return [_counts(table[a:b, 1], table[a:b, 2], size) for a, b in pairwise(ends)]


def _counts(starts: np.ndarray, lengths: np.ndarray, size: tuple[int, int]) -> dict:
    """Encode alternating lengths, outside and inside the region, with pycocotools."""
    # True where a run continues in the next columns.
    joins = np.append(starts[1:] == starts[:-1] + lengths[:-1], False)
    begins = starts[np.append(True, ~joins[:-1])]
    ends = (starts + lengths)[~joins]
    edges = np.stack([begins, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=size[0] * size[1]).tolist()
    packed = mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return {"size": list(size), "counts": packed["counts"].decode()}
