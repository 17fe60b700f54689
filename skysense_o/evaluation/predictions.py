"""Predicted label maps as files: COCO's run-length masks in one JSON, PNG images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask

from skysense_o.inference.drawing import Color
from skysense_o.sample import IGNORE

KINDS = ("coco", "png")


def as_coco(file_name: str, prediction: np.ndarray, classes: int) -> list[dict]:
    """One entry a class that is in the image, as Detectron2's SemSegEvaluator writes them to
    sem_seg_predictions.json: {"file_name", "category_id" (the class id), "segmentation" (run-length mask)}.
    """
    rows = []
    for label in np.unique(prediction[prediction < classes]).tolist():
        runs = mask.encode(np.asfortranarray(prediction == label, np.uint8))
        segmentation = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
        rows.append({"file_name": file_name, "category_id": label, "segmentation": segmentation})
    return rows


def save_png(path: Path, prediction: np.ndarray, colors: list[Color]) -> None:
    """One channel with the class ids and a palette of their colours; IGNORE, black, is none of them."""
    ids = np.where(prediction < len(colors), prediction, IGNORE).astype(np.uint8)
    image = Image.fromarray(ids)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    image.putpalette(palette.tobytes())  # of a grey image it makes one with a palette
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_coco(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
