"""Average precision of boxes, as COCO defines it, by pycocotools."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def box_average_precision(truth: dict, results: list[dict], most: int = 1000) -> dict:
    """Score boxes such as `--save boxes` writes against annotations.

    Args:
        truth: COCO's annotation file, loaded: images, categories, annotations with bbox.
        results: COCO's result list: image_id, category_id, bbox (x, y, width, height), score.
        most: boxes a class and image that count, the best first; COCO's 100 are few for a scene.

    Returns:
        AP over the overlaps 0.5 to 0.95, at 0.5 and at 0.75, and by size, in 0..1 or NaN where the truth has none;
        "per_class": name -> AP.

    Raises:
        ValueError: a result of an image or a class that the truth does not have.
    """
    for key, known in (
        ("image_id", {image["id"] for image in truth["images"]}),
        ("category_id", {category["id"] for category in truth["categories"]}),
    ):
        wrong = sorted({row[key] for row in results} - known)
        if wrong:
            raise ValueError(
                f"results have {key} {wrong[:5]}, which the truth does not have: it has {sorted(known)[:20]}"
            )
    with redirect_stdout(StringIO()):  # pycocotools prints as it goes
        reference = COCO()
        reference.dataset = {**truth, "annotations": [_complete(i, a) for i, a in enumerate(truth["annotations"], 1)]}
        reference.createIndex()
        found = COCO()
        found.dataset = {**truth, "annotations": [_complete(i, row) for i, row in enumerate(results, 1)]}
        found.createIndex()
        evaluation = COCOeval(reference, found, "bbox")
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (overlaps, recalls, classes, sizes, limits)
    every = slice(None)
    picks = {"AP": (every, 0), "AP50": (0, 0), "AP75": (5, 0)}
    picks.update({f"AP_{size}": (every, i) for i, size in enumerate(("small", "medium", "large"), 1)})
    numbers = {name: _mean(precision[overlap, :, :, size, 2]) for name, (overlap, size) in picks.items()}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    classes = enumerate(evaluation.params.catIds)
    return {**numbers, "per_class": {names[c]: _mean(precision[:, :, k, 0, 2]) for k, c in classes}}


def _complete(number: int, annotation: dict) -> dict:
    _, _, width, height = annotation["bbox"]
    return {"iscrowd": 0, **annotation, "id": number, "area": width * height}


def _mean(precision: np.ndarray) -> float:
    """COCO marks what the truth does not have by -1."""
    some = precision[precision > -1]
    return float(some.mean()) if some.size else float("nan")
