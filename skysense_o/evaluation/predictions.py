"""Write predicted label maps: COCO run-length masks in one JSON file, or PNG images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask

from skysense_o.inference.drawing import Color
from skysense_o.sample import IGNORE
from skysense_o.whole_files import whole, write_text

KINDS = ("coco", "png")


def as_coco(file_name: str, prediction: np.ndarray, classes: int) -> list[dict]:
    """Encode a label map as in the sem_seg_predictions.json of Detectron2's SemSegEvaluator.

    Args:
        file_name: file name of the image.
        prediction: (H,W) class indices.
        classes: C; pixels with an index of C or more are left out.

    Returns:
        One dict per class in the image: "file_name", "category_id" (class index), "segmentation" (run-length mask).

    >>> [row["category_id"] for row in as_coco("a.png", np.array([[0, 2, 3]]), classes=3)]
    [0, 2]
    """
    rows = []
    for label in np.unique(prediction[prediction < classes]).tolist():
        runs = mask.encode(np.asfortranarray(prediction == label, np.uint8))
        segmentation = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
        rows.append({"file_name": file_name, "category_id": label, "segmentation": segmentation})
    return rows


def save_png(path: Path, prediction: np.ndarray, colors: list[Color]) -> None:
    """Write a palette PNG of class indices; pixels without a class get IGNORE, which is black.

    Args:
        path: path of the new file.
        prediction: (H,W) class indices.
        colors: RGB of each of the C classes.
    """
    ids = np.where(prediction < len(colors), prediction, IGNORE).astype(np.uint8)
    image = Image.fromarray(ids)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    image.putpalette(palette.tobytes())  # turns a grey image into a palette image
    with whole(path) as part:
        image.save(part, format="PNG")


def write_coco(path: Path, rows: list[dict]) -> None:
    """Write the entries of `as_coco` to a JSON file."""
    write_text(path, json.dumps(rows))
