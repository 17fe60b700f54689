"""Readers of weak labels: boxes in COCO format; points, shapes and scene classes in JSON lines; class folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from skysense_o.data.classes import CLASSES_FOLDER, load_classes
from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.data.language import index_file
from skysense_o.text_files import read_json_file, read_json_lines

BY_ID = re.compile(r"id % (\d+) (==|!=) (\d+)")


def read_box_labels(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read COCO's JSON. `boxes` of a record are [x0, y0, x1, y1, class id], half-open XYXY in pixels.

    A split is "id % 10 == 0" (or !=) of the images' ids, or a glob of file stems. An image without a box is kept.

    Raises:
        ValueError: a category that is not in the class table.
    """
    path, names = index_file(spec, split), load_classes(spec.class_table_name).folders
    body = read_json_file(path)
    unknown = sorted({c["name"] for c in body["categories"]} - set(names))
    if unknown:
        raise ValueError(
            f"{path} has the categories {unknown}: datasets/classes/{spec.class_table_name}.json has {list(names)}"
        )
    class_of = {c["id"]: names.index(c["name"]) for c in body["categories"]}
    boxes: dict[int, list[list[float]]] = {}
    for one in body["annotations"]:
        x, y, width, height = one["bbox"]
        boxes.setdefault(one["image_id"], []).append([x, y, x + width, y + height, class_of[one["category_id"]]])
    for image in sorted(body["images"], key=lambda entry: entry["file_name"]):
        if _chosen(spec.splits[split], image["id"], Path(image["file_name"]).stem):
            file = spec.root / spec.images / image["file_name"]
            yield _record(spec, file, boxes=boxes.get(image["id"], []))


def read_point_labels(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """JSON lines {"image", "split", "<class name>": [[x, y], ...]} -> `points` of a record, [x, y, class id] each."""
    names = load_classes(spec.class_table_name).classes
    for entry in _lines(index_file(spec, split)):
        if entry["split"] == spec.splits[split]:
            points = [[x, y, c] for c, name in enumerate(names) for x, y in entry.get(name, [])]
            yield _record(spec, spec.root / entry["image"], points=points)


def read_listed_scenes(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """JSON lines {"image", "split", "class"}; images without a class are left out."""
    folders = load_classes(spec.class_table_name).folders
    for entry in _lines(index_file(spec, split)):
        if entry["split"] != spec.splits[split] or not entry.get("class"):
            continue
        if entry["class"] not in folders:
            raise ValueError(
                f"{entry['image']} is {entry['class']!r}, which datasets/classes/{spec.class_table_name}.json has not"
            )
        yield _record(spec, spec.root / entry["image"], label=folders.index(entry["class"]))


def read_split_folders(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read <split>/<class>/<image>; a split may lack classes."""
    root = spec.root / spec.images.format(split=split)
    for label, name in enumerate(load_classes(spec.class_table_name).folders):
        for file in sorted((root / name).iterdir()) if (root / name).is_dir() else ():
            if file.suffix.lower() in spec.image_suffix.split("|"):
                yield _record(spec, file, label=label)


def read_marks(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """`datasets/points/<index>`: JSON lines {"image", "what", "points"}, every object of one kind in one image.

    A record has `points` as in `read_point_labels`, `what`, and the scene class `kind`. Objects that are not in the
    class table are left out.
    """
    names = load_classes(spec.class_table_name).classes
    for entry in _lines(CLASSES_FOLDER.parent / "points" / spec.index):
        if entry["what"] in names:
            c = names.index(entry["what"])
            file = spec.root / spec.images / (entry["image"] + spec.image_suffix)
            points = [[x, y, c] for x, y in entry["points"]]
            yield _record(spec, file, points=points, what=entry["what"], kind=_scene_of(spec, entry["image"]))


def read_shapes(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """`datasets/shapes/<index>`: JSON lines {"image", "class", "complete", "polygons", "circles", "margin"}.

    A line has the outlines of one class in one image: polygons [[x, y], ...] and circles [x, y, radius], in pixels.
    `complete`: the image has no other objects of the class. `margin`: so many pixels around are unknown (default 1).
    A record has the lines of one image: `shapes` with class ids, `complete` (ids), and the scene class `kind`.

    Raises:
        ValueError: a class that the table has not, no shape, a polygon of fewer than 3 points, or no radius.
    """
    path, names = CLASSES_FOLDER.parent / "shapes" / spec.index, load_classes(spec.class_table_name).classes
    images: dict[str, list[dict]] = {}
    for number, entry in enumerate(_lines(path), 1):
        where = f"{path}, line {number} ({entry['image']})"
        if entry["class"] not in names:
            raise ValueError(
                f"{where}: {entry['class']!r} is no class of datasets/classes/{spec.class_table_name}.json, which has"
                f" {', '.join(names)}"
            )
        shape = {"class": names.index(entry["class"]), "complete": entry["complete"], "margin": entry.get("margin", 1)}
        shape |= {key: entry.get(key, []) for key in ("polygons", "circles")}
        if not shape["polygons"] and not shape["circles"]:
            raise ValueError(f"{where} has neither polygons nor circles: add one or take the line out")
        for polygon in shape["polygons"]:
            if len(polygon) < 3:
                raise ValueError(f"{where}: the polygon {polygon} has {len(polygon)} points: at least 3 are needed")
        for circle in shape["circles"]:
            if not circle[2] > 0:
                raise ValueError(f"{where}: the circle {circle} (x, y, radius) needs a radius above 0")
        images.setdefault(entry["image"], []).append(shape)
    for image, shapes in images.items():
        complete = sorted({shape["class"] for shape in shapes if shape.pop("complete")})
        file = spec.root / spec.images / (image + spec.image_suffix)
        yield _record(spec, file, shapes=shapes, complete=complete, kind=_scene_of(spec, image))


def _scene_of(spec: DatasetSpec, image: str) -> str:
    """The scene class of <folder of a class>/<image>, as in `concepts.json`."""
    scenes = load_classes(spec.folder)
    return f"{spec.folder}/{scenes.classes[scenes.folders.index(Path(image).parent.name)]}"


def _chosen(rule: str, number: int, stem: str) -> bool:
    found = BY_ID.fullmatch(rule)
    if not found:
        return fnmatch(stem, rule)
    return (number % int(found[1]) == int(found[3])) == (found[2] == "==")


def _lines(path: Path) -> list[dict]:
    return [row for _, row in read_json_lines(path)]


def _record(spec: DatasetSpec, file: Path, **what) -> dict:
    return {"file_name": str(file), "dataset": spec.key, **what} if file.is_file() else {"bad": f"{file} is missing"}
