"""Readers of weak labels: boxes in COCO format, points and scene classes in JSON lines, class folders per split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from skysense_o.data.classes import CLASSES_FOLDER, load_classes
from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.data.language import index_file
from skysense_o.image_io import images_in
from skysense_o.json_files import REQUIRED, numbers, take
from skysense_o.text_files import read_json_file, read_json_lines

BY_ID = re.compile(r"id % (\d+) (==|!=) (\d+)")


def read_box_labels(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read COCO's JSON. `boxes` of a record are [x0, y0, x1, y1, class id], half-open XYXY in pixels.

    A split is "id % 10 == 0" (or !=) of the images' ids, or a glob of file stems. An image without a box is kept.

    Raises:
        ValueError: a category that the class table has not.
    """
    path, names = index_file(spec, split), load_classes(spec.class_table_name).folders
    body, where = read_json_file(path), str(path)
    class_of = {}
    for one in take(body, "categories", list, where):
        class_of[take(one, "id", int, f"{where}, a category")] = take(one, "name", str, f"{where}, a category")
    unknown = sorted(set(class_of.values()) - set(names))
    if unknown:
        raise ValueError(
            f"{path} has the categories {unknown}: datasets/classes/{spec.class_table_name}.json has {list(names)}"
        )
    boxes: dict[int, list[list[float]]] = {}
    for number, one in enumerate(take(body, "annotations", list, where), 1):
        here = f"{where}, annotation {number}"
        x, y, width, height = numbers(take(one, "bbox", list, here), 4, f"{here}: 'bbox'")
        category = take(one, "category_id", int, here)
        if category not in class_of:
            raise ValueError(f"{here} has category {category}, which the file does not list")
        box = [x, y, x + width, y + height, names.index(class_of[category])]
        boxes.setdefault(take(one, "image_id", int, here), []).append(box)
    images = [
        (take(one, "file_name", str, f"{where}, an image"), take(one, "id", int, f"{where}, an image"))
        for one in take(body, "images", list, where)
    ]
    for name, number in sorted(images):
        if _chosen(spec.splits[split], number, Path(name).stem):
            yield _record(spec, spec.root / spec.images / name, boxes=boxes.get(number, []))


def read_point_labels(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """JSON lines {"image", "split", "<class name>": [[x, y], ...]} -> `points` of a record, [x, y, class id] each."""
    names = load_classes(spec.class_table_name).classes
    path = index_file(spec, split)
    for number, entry in read_json_lines(path):
        where = f"{path}, line {number}"
        if take(entry, "split", str, where) == spec.splits[split]:
            points = [[*p, c] for c, name in enumerate(names) for p in _points(entry, name, where, [])]
            yield _record(spec, spec.root / take(entry, "image", str, where), points=points)


def read_listed_scenes(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """JSON lines {"image", "split", "class"}; images without a class are left out."""
    folders = load_classes(spec.class_table_name).folders
    path = index_file(spec, split)
    for number, entry in read_json_lines(path):
        where = f"{path}, line {number}"
        folder = take(entry, "class", (str, type(None)), where, None)
        if take(entry, "split", str, where) != spec.splits[split] or not folder:
            continue
        if folder not in folders:
            raise ValueError(f"{where} has {folder!r}, which datasets/classes/{spec.class_table_name}.json has not")
        yield _record(spec, spec.root / take(entry, "image", str, where), label=folders.index(folder))


def read_split_folders(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read <split>/<class>/<image>; a split may lack classes."""
    root = spec.root / spec.images.format(split=split)
    for label, name in enumerate(load_classes(spec.class_table_name).folders):
        for file in images_in(root / name, spec.image_suffix.split("|")) if (root / name).is_dir() else ():
            yield _record(spec, file, label=label)


def read_marks(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """`datasets/points/<index>`: JSON lines {"image", "what", "points"}, every object of one kind in one image.

    A record has `points` as in `read_point_labels`, `what`, and the scene class `kind`. Objects that are not in the
    class table are left out.
    """
    names, scenes = load_classes(spec.class_table_name).classes, load_classes(spec.folder)
    kinds = dict(zip(scenes.folders, scenes.classes))
    path = CLASSES_FOLDER.parent / "points" / spec.index
    for number, entry in read_json_lines(path):
        where = f"{path}, line {number}"
        what, image = take(entry, "what", str, where), take(entry, "image", str, where)
        if what in names:
            points = [[*point, names.index(what)] for point in _points(entry, "points", where)]
            kind = kinds[Path(image).parent.name]
            file = spec.root / spec.images / (image + spec.image_suffix)
            yield _record(spec, file, points=points, what=what, kind=f"{spec.folder}/{kind}")


def _chosen(rule: str, number: int, stem: str) -> bool:
    found = BY_ID.fullmatch(rule)
    if not found:
        return fnmatch(stem, rule)
    return (number % int(found[1]) == int(found[3])) == (found[2] == "==")


def _points(entry: dict, key: str, where: str, default=REQUIRED) -> list[list[float]]:
    return [numbers(point, 2, f"{where}: a point of {key!r}") for point in take(entry, key, list, where, default)]


def _record(spec: DatasetSpec, file: Path, **what) -> dict:
    return (
        {"file_name": str(file), "dataset": spec.key, **what} if os.path.isfile(file) else {"bad": f"{file} is missing"}
    )
