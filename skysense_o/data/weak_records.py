"""Readers of weak labels: boxes in COCO format; points, shapes and scene classes in JSON lines; a folder per class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from skysense_o.data.classes import CLASSES_FOLDER, load_classes
from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.data.language import index_file
from skysense_o.data.weak.shapes import UNKNOWN_SHAPE
from skysense_o.image_io import images_in
from skysense_o.text_files import REQUIRED, checked, numbers, read_json_file, read_json_lines, take

BY_ID = re.compile(r"id % (\d+) (==|!=) (\d+)")


def read_box_labels(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read COCO's JSON. "boxes" of a record is a list of [x0, y0, x1, y1, class id], half-open XYXY in pixels.

    The rule of a split is a condition on image ids, such as "id % 10 == 0" or "id % 10 != 0", or a glob of file stems.
    Images without a box are kept.

    Raises:
        ValueError: the class table does not have a category of the file.
    """
    path, names = index_file(spec, split), load_classes(spec.class_table_name).folders
    body, where = read_json_file(path), str(path)
    class_of = {}
    for one in take(body, "categories", list, where):
        class_of[take(one, "id", int, f"{where}, a category")] = take(one, "name", str, f"{where}, a category")
    unknown = sorted(set(class_of.values()) - set(names))
    if unknown:
        raise ValueError(
            f"{path} has the categories {unknown}, but datasets/classes/{spec.class_table_name}.json has {list(names)}"
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
    """Read JSON lines {"image", "split", "<class name>": [[x, y], ...]} -> records with "points", [x, y, class id]."""
    names = load_classes(spec.class_table_name).classes
    path = index_file(spec, split)
    for number, entry in read_json_lines(path):
        where = f"{path}, line {number}"
        if take(entry, "split", str, where) == spec.splits[split]:
            points = [[*p, c] for c, name in enumerate(names) for p in _points(entry, name, where, [])]
            yield _record(spec, spec.root / take(entry, "image", str, where), points=points)


def read_listed_scenes(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read JSON lines {"image", "split", "class"}; images without a class are left out."""
    for image, of, label in _listed_scenes(index_file(spec, split), spec.class_table_name):
        if of == spec.splits[split] and label is not None:
            yield _record(spec, spec.root / image, label=label)


def _listed_scenes(path: Path, table: str) -> Iterator[tuple[str, str, int | None]]:
    """Image, split and class id of each line of a file {"image", "split", "class"}; None if an image has no class."""
    folders = load_classes(table).folders
    for number, entry in read_json_lines(path):
        where = f"{path}, line {number}"
        folder = take(entry, "class", (str, type(None)), where, None)
        if folder and folder not in folders:
            raise ValueError(f"{where} has {folder!r}, which is not in datasets/classes/{table}.json")
        label = folders.index(folder) if folder else None
        yield take(entry, "image", str, where), take(entry, "split", str, where), label


def read_split_folders(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read <split>/<class>/<image>; a split may lack classes."""
    root = spec.root / spec.images.format(split=split)
    for label, name in enumerate(load_classes(spec.class_table_name).folders):
        for file in images_in(root / name, spec.image_suffix.split("|")) if (root / name).is_dir() else ():
            yield _record(spec, file, label=label)


def read_marks(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read `datasets/points/<index>`, JSON lines {"image", "what", "points"}.

    A line has a point on every object of the kind "what" in one image. A record has three further keys:
    "points", a list of [x, y, class id]; "what", copied from the line; and "kind", the scene class of the image. Lines
    with a kind that is not in the class table are left out.
    """
    names = load_classes(spec.class_table_name).classes
    path = CLASSES_FOLDER.parent / "points" / spec.index
    for number, entry in read_json_lines(path):
        where = f"{path}, line {number}"
        what, image = take(entry, "what", str, where), take(entry, "image", str, where)
        if what in names:
            points = [[*point, names.index(what)] for point in _points(entry, "points", where)]
            file = spec.root / spec.images / (image + spec.image_suffix)
            yield _record(spec, file, points=points, what=what, kind=_scene_of(spec, image))


def read_shapes(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read `datasets/shapes/<index>`, JSON lines {"image", "class", "complete", "polygons", "circles", "margin"}.

    A line has the outlines of one class in one image: polygons [[x, y], ...] and circles [x, y, radius], in pixels. If
    "complete" is true, the image has no other object of the class; so a complete line without outlines means that the
    image has no object of the class. "margin" is the width in pixels of a rim around each outline in which the class is
    unknown (default 1). The class "unknown" means that nothing is known about the pixels inside the outlines.

    A record combines all lines of one image: "shapes", with class ids (UNKNOWN_SHAPE for "unknown"); "complete", the
    ids of the complete classes; and "kind", the scene class, or None if it is not known.

    Raises:
        ValueError: a class is not in the table, an incomplete line has no outlines, a polygon has fewer than 3 points,
            a radius is not positive, or a margin is out of range.
    """
    path, names = CLASSES_FOLDER.parent / "shapes" / spec.index, load_classes(spec.class_table_name).classes
    images: dict[str, list[dict]] = {}
    for number, entry in read_json_lines(path):
        image = take(entry, "image", str, f"{path}, line {number}")
        where = f"{path}, line {number} ({image})"
        images.setdefault(image, []).append(_shape(entry, names, where, spec.class_table_name))
    kinds = _scenes_of(spec, images)
    for image, shapes in images.items():
        complete = sorted({shape["class"] for shape in shapes if shape.pop("complete")})
        file = spec.root / spec.images / (image + spec.image_suffix)
        yield _record(spec, file, shapes=shapes, complete=complete, kind=kinds[image])


def _shape(entry: dict, names: Sequence[str], where: str, table: str) -> dict:
    """Check one line of the file that `read_shapes` reads, and return its content."""
    name = take(entry, "class", str, where)
    if name not in (*names, "unknown"):
        raise ValueError(
            f"{where}: {name!r} is not a class of datasets/classes/{table}.json, which has {', '.join(names)}"
        )
    polygons = [
        [numbers(point, 2, f"{where}: a point of a polygon") for point in checked(polygon, list, f"{where}: a polygon")]
        for polygon in take(entry, "polygons", list, where, [])
    ]
    circles = [numbers(one, 3, f"{where}: a circle") for one in take(entry, "circles", list, where, [])]
    complete, margin = take(entry, "complete", bool, where), take(entry, "margin", float, where, 1)
    if not polygons and not circles and not complete:
        raise ValueError(f"{where} has neither polygons nor circles: add one or remove the line")
    for polygon in polygons:
        if len(polygon) < 3:
            raise ValueError(f"{where}: the polygon {polygon} has {len(polygon)} points: at least 3 are needed")
    for circle in circles:
        if not circle[2] > 0:
            raise ValueError(f"{where}: the circle {circle} (x, y, radius) needs a radius above 0")
    if not 0 <= margin <= 100:
        raise ValueError(f"{where}: the margin {margin} is out of range: 0 to 100 pixels")
    label, complete = (UNKNOWN_SHAPE, False) if name == "unknown" else (names.index(name), complete)
    return {"class": label, "complete": complete, "margin": margin, "polygons": polygons, "circles": circles}


def _scene_of(spec: DatasetSpec, image: str) -> str | None:
    """The scene class of an image <folder of a class>/<stem>, as `concepts.json` names it; None without a folder."""
    if "/" not in image:
        return None
    scenes = load_classes(spec.folder)
    return f"{spec.folder}/{scenes.classes[scenes.folders.index(Path(image).parent.name)]}"


def _scenes_of(spec: DatasetSpec, images: Iterable[str]) -> dict[str, str | None]:
    """`_scene_of` for many images, whose scene classes `scenes_index` lists if they have no folders."""
    if not spec.scenes_index:
        return {image: _scene_of(spec, image) for image in images}
    path, names = spec.root / spec.scenes_index, load_classes(spec.folder).classes
    listed = {Path(image).stem: label for image, _, label in _listed_scenes(path, spec.folder)}
    missing = next((image for image in images if image not in listed), None)
    if missing:
        raise ValueError(f"{path} does not list {missing}: get the whole file")
    return {image: f"{spec.folder}/{names[listed[image]]}" if listed[image] is not None else None for image in images}


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
