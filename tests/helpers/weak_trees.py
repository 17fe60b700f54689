"""Tiny copies of data sets with boxes, points, marked objects, outlines and scene classes, in their own formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
BOXES = {
    1: [("car", [10, 10, 12, 8]), ("airliner", [30, 30, 24, 20])],  # each box: x, y, width, height
    2: [("car", [4, 40, 10, 6])],
    10: [("boat", [20, 8, 16, 10])],
}


def image(path: Path, color: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Write a noisy image of one colour to `path`; return it."""
    noise = np.random.default_rng(seed).integers(-12, 13, (SIDE, SIDE, 3))
    body = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(body).save(path)
    return body


def vehicles(data: Path) -> Path:
    """Write three images with boxes around bright objects; ids 1 and 2 are for training, 10 for validation."""
    folder, classes = data / "vehicles", ["car", "airliner", "boat"]
    annotations = []
    for number, boxes in BOXES.items():
        body = image(folder / f"images/{number}.png", (60, 70, 60), number)
        for name, (x, y, width, height) in boxes:
            inset = max(1, height // 6)
            body[y + inset : y + height - inset, x + inset : x + width - inset] = (230, 225, 40)
            annotations.append({"image_id": number, "bbox": [x, y, width, height], "category_id": classes.index(name)})
        Image.fromarray(body).save(folder / f"images/{number}.png")
    images = [{"id": number, "file_name": f"{number}.png"} for number in BOXES]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    write_boxes(folder, images, annotations, categories)
    return folder


def write_boxes(folder: Path, images: list, annotations: list, categories: list) -> None:
    body = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(body))


def trees(data: Path) -> Path:
    """Write three images with points (one image has none), two for training and one for testing."""
    folder, lines = data / "trees", []
    for number, (split, points) in enumerate((("train", [[10, 12], [50, 40]]), ("train", []), ("test", [[3, 3]]))):
        image(folder / f"images/{number}.png", (90, 100, 60), number)
        lines.append({"image": f"images/{number}.png", "split": split, "tree": points})
    (folder / "points.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def rsicd(data: Path) -> Path:
    """Write images with captions and their scene class; one image has no class."""
    folder, lines = data / "rsicd", []
    kinds = {"farmland": (150, 170, 60), "forest": (20, 90, 30), "airport": (150, 150, 150), None: (9, 9, 9)}
    for number, (kind, color) in enumerate(kinds.items()):
        image(folder / f"images/{number}.png", color, number)
        captions = [f"a {kind} with many airplanes", f"some planes on a {kind}"]
        lines.append({"image": f"images/{number}.png", "split": "train", "class": kind, "captions": captions})
    lines.append({**lines[0], "split": "test"})
    write_lines(folder / "captions.jsonl", lines)
    return folder


SHAPES = (
    {"image": "beach/beach00", "class": "sea", "complete": True, "polygons": [[[0, 0], [32, 0], [32, 64], [0, 64]]]},
    {"image": "beach/beach00", "class": "beach", "complete": False, "margin": 3}
    | {"polygons": [[[32, 0], [64, 0], [64, 64], [32, 64]]]},
    {"image": "storagetanks/storagetanks00", "class": "storage tank", "complete": True}
    | {"circles": [[20, 30, 10], [60, 60, 9]]},
)


def shapes(data: Path, lines=SHAPES) -> None:
    """Write two images of UC Merced, and their outlines to <data>/datasets/shapes."""
    for line in lines:
        image(data / f"ucmerced/images/{line['image']}.jpg", (60, 90, 120))
    (data / "datasets/shapes").mkdir(parents=True, exist_ok=True)
    write_lines(data / "datasets/shapes/ucmerced.jsonl", lines)


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("\n".join(map(json.dumps, lines)))


def scenes12(data: Path) -> Path:
    """Write one folder per split: lakes for training, lakes and mountains for testing."""
    for split, name in (("train", "lake"), ("test", "lake"), ("test", "mountain")):
        image(data / f"scenes12/{split}/{name}/{name}_1.jpg", (40, 80, 160))
    return data / "scenes12"


def roads(data: Path) -> Path:
    """Write images crossed by a road, and labels (1 road, 0 not road); image numbers ending in 5 are for validation."""
    for number in (1, 5):
        image(data / f"roads/images/img_{number}.png", (80, 120, 60), number)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        labels[20:36] = 1
        (data / "roads/labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(data / f"roads/labels/img_{number}.png")
    return data / "roads"
