"""Average precision of boxes as COCO defines it, computed by pycocotools."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from skysense_o.text_files import read_json_file


def box_average_precision(truth: dict, results: list[dict], most: int = 1000) -> dict:
    """Compare boxes, for instance from `demo.py --save boxes`, with annotations.

    Args:
        truth: content of a COCO annotation file: images, categories, and annotations with bbox.
        results: content of a COCO result file: a list of image_id, category_id, bbox (x, y, width, height) and score.
        most: number of boxes per class and image that are evaluated, those with the highest scores. COCO evaluates
            100, which is too few for a large scene.

    Returns:
        AP (mean over the IoU thresholds 0.5 to 0.95), AP50, AP75, AP_small, AP_medium, AP_large, in 0..1 or NaN
        without annotations; and "per_class": class -> AP.

    Raises:
        ValueError: a result has an image or a class that the annotations do not have.

    >>> truth = {"images": [{"id": 1}], "categories": [{"id": 0, "name": "ship"}],
    ...          "annotations": [{"image_id": 1, "category_id": 0, "bbox": [10, 10, 50, 40]}]}
    >>> box = {"image_id": 1, "category_id": 0, "bbox": [10, 10, 50, 40], "score": 0.9}
    >>> round(box_average_precision(truth, [box])["AP"], 3)
    1.0
    """
    for key, known in (
        ("image_id", {image["id"] for image in truth["images"]}),
        ("category_id", {category["id"] for category in truth["categories"]}),
    ):
        wrong = sorted({row[key] for row in results} - known)
        if wrong:
            raise ValueError(
                f"results have {key} {wrong[:5]}, which the annotations do not have: they have {sorted(known)[:20]}"
            )
    with redirect_stdout(StringIO()):  # pycocotools prints its progress
        reference = COCO()
        reference.dataset = {**truth, "annotations": [_complete(i, a) for i, a in enumerate(truth["annotations"], 1)]}
        reference.createIndex()
        predicted = COCO()
        predicted.dataset = {**truth, "annotations": [_complete(i, row) for i, row in enumerate(results, 1)]}
        predicted.createIndex()
        evaluation = COCOeval(reference, predicted, "bbox")
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, classes, sizes, limits)
    all_thresholds = slice(None)
    indices = {"AP": (all_thresholds, 0), "AP50": (0, 0), "AP75": (5, 0)}
    indices.update({f"AP_{size}": (all_thresholds, i) for i, size in enumerate(("small", "medium", "large"), 1)})
    metrics = {name: _mean(precision[threshold, :, :, size, 2]) for name, (threshold, size) in indices.items()}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    classes = enumerate(evaluation.params.catIds)
    return {**metrics, "per_class": {names[c]: _mean(precision[:, :, k, 0, 2]) for k, c in classes}}


def read_coco_boxes(truth: str | Path, results: str | Path) -> tuple[dict, list[dict]]:
    """Read an annotation file and a result file for `box_average_precision`.

    Args:
        truth: COCO annotation file with boxes of images.
        results: COCO result file.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is not JSON, or lacks a key.
    """
    annotations, rows = _read_json(truth), _read_json(results)
    if not isinstance(annotations, dict) or not {"images", "categories", "annotations"} <= set(annotations):
        raise ValueError(f"{truth} is not a COCO annotation file: it needs images, categories and annotations")
    if not isinstance(rows, list):
        raise ValueError(f"{results} is not a COCO result file: it needs a list of boxes")
    required = {"image_id", "category_id", "bbox"}
    for path, boxes, keys in ((truth, annotations["annotations"], required), (results, rows, required | {"score"})):
        for index, box in enumerate(boxes):
            missing = sorted(keys - set(box)) if isinstance(box, dict) else sorted(keys)
            if missing:
                raise ValueError(f"{path}: box {index} has no {', '.join(missing)}")
    return annotations, rows


def _read_json(path: str | Path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {str(path)!r}")
    return read_json_file(path)


def _complete(number: int, annotation: dict) -> dict:
    """Add the keys that pycocotools needs (`iscrowd`, `id`, `area`) to a COCO annotation."""
    _, _, width, height = annotation["bbox"]
    return {"iscrowd": 0, **annotation, "id": number, "area": width * height}


def _mean(precision: np.ndarray) -> float:
    """Mean precision; pycocotools stores -1 where there are no annotations."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
