"""Read the records of a data set, with one reader per file format.

A record is a small dict. All records have "file_name" and "dataset", the key by which the data set's classes are looked
up. Depending on the task, they also have "sem_seg_file_name", "label", "boxes", "points", "shapes", "captions", or
"question" and "answer".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from skysense_o.data.classes import load_classes
from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.data.language import read_captions, read_conversations, read_rsvqa, read_table, read_text_questions
from skysense_o.data.shards import read_shards
from skysense_o.data.skysa import read_skysa
from skysense_o.data.weak_records import (
    read_box_labels,
    read_listed_scenes,
    read_marks,
    read_point_labels,
    read_shapes,
    read_split_folders,
)
from skysense_o.image_io import images_in
from skysense_o.text_files import read_json_lines, take

logger = logging.getLogger(__name__)


def load_split(spec: DatasetSpec, split: str, skip_bad: bool = False) -> list[dict]:
    """Load the records of one split, in the same order on every machine.

    Args:
        skip_bad: leave out images whose label is missing, with a warning that lists them, instead of stopping.

    Raises:
        FileNotFoundError: the data is not there, or a label is missing. The message gives the path and the cure.
    """
    records, bad = read_split(spec, split)
    if bad and not skip_bad:
        raise FileNotFoundError(f"{bad[0]}: {spec.hint}; DATALOADER.SKIP_BAD True skips such files")
    if bad:
        listed = "; ".join(bad[:20])
        logger.warning("%s_%s: %d files skipped: %s", spec.name, split, len(bad), listed)
    return records


def read_split(spec: DatasetSpec, split: str) -> tuple[list[dict], list[str]]:
    """Read one split -> its records, and an error message for each image that cannot be used.

    Raises:
        FileNotFoundError: the data is not there. The message gives the path and the cure.
    """
    if not spec.root.is_dir():
        raise FileNotFoundError(f"no data of {spec.name}_{split} at {looked_at(spec, split)}: {spec.hint}")
    records, bad = [], []
    for record in READERS[spec.format](spec, split):
        if "bad" in record:
            bad.append(record["bad"])
        else:
            records.append(record)
    if not records and bad:
        raise FileNotFoundError(f"none of {len(bad)} images of {spec.name}_{split} can be used: {bad[0]}: {spec.hint}")
    if not records:
        raise FileNotFoundError(f"no images of {spec.name}_{split} at {looked_at(spec, split)}: {spec.hint}")
    return records, bad


def looked_at(spec: DatasetSpec, split: str) -> str:
    """The pattern of the files of a split, for error messages."""
    if spec.format == "pairs":
        return str(spec.root / spec.images.format(split=split) / (spec.splits[split] + spec.image_suffix))
    return str(spec.root / (spec.index.format(split=split) or spec.images.format(split=split)))


def read_label_pairs(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read two folders with images and label images of the same stems."""
    images = spec.root / spec.images.format(split=split)
    labels = spec.root / spec.labels.format(split=split)
    there = {path.name.lower(): path.name for path in labels.iterdir()} if labels.is_dir() else {}
    suffixes, label_suffixes = tuple(spec.image_suffix.split("|")), spec.label_suffix.split("|")
    globs = spec.splits[split].split("|")
    for image in images_in(images, suffixes) if images.is_dir() else ():
        if not any(map(partial(fnmatch, image.stem), globs)):
            continue
        names = [image.stem + suffix for suffix in label_suffixes]
        name = next((there[name.lower()] for name in names if name.lower() in there), None)
        if name is None:
            yield {"bad": f"{image} has no label image {labels / names[0]}"}
            continue
        yield {"file_name": str(image), "sem_seg_file_name": str(labels / name), "dataset": spec.key}


def read_scenes(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read a folder per class. Images of different classes may have the same name, such as 0001.tif in SIRI-WHU."""
    table, root = load_classes(spec.class_table_name), class_folders(spec)
    there = {_plain(p.name): p for p in sorted(root.iterdir()) if p.is_dir()}
    unknown = sorted(p.name for plain, p in there.items() if plain not in map(_plain, table.folders))
    if unknown:
        logger.warning(
            "%s: folders %s are not classes of datasets/classes/%s.json", root, unknown, spec.class_table_name
        )
    chosen = _listed(spec, split) if spec.splits[split].endswith(".jsonl") else None
    for label, name in enumerate(table.folders):
        folder = there.get(_plain(name))
        if folder is None:
            yield {"bad": f"{root} has no folder {name!r}"}
            continue
        for image in images_in(folder, spec.image_suffix.split("|")):
            if chosen is None or (folder.name, image.stem) in chosen:
                yield {"file_name": str(image), "label": label, "dataset": spec.key}


def class_folders(spec: DatasetSpec) -> Path:
    """The first of the folders in `spec.images`, separated by bars, that contains the folder of one of the classes."""
    table = load_classes(spec.class_table_name)
    names = {_plain(folder) for folder in table.folders}
    for name in spec.images.split("|"):
        root = spec.root / name
        if root.is_dir() and any(p.is_dir() and _plain(p.name) in names for p in root.iterdir()):
            return root
    raise FileNotFoundError(f"no folder of a class such as {table.folders[0]!r} in {spec.root}: {spec.hint}")


def _plain(name: str) -> str:
    """Simplify a class name, so that DenseResidential, dense_residential and "dense residential" become equal."""
    return "".join(c for c in name.lower() if c.isalnum())


def _listed(spec: DatasetSpec, split: str) -> set[tuple[str, str]]:
    """(folder, stem) of the images of a split, from a file of {"image", "split"} lines."""
    path = spec.root / spec.splits[split]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, which lists the images of {spec.name}_{split}: {spec.hint}")
    images = []
    for number, entry in read_json_lines(path):
        image, own = (take(entry, key, str, f"{path}, line {number}") for key in ("image", "split"))
        images += [Path(image)] if own == split else []
    return {(image.parent.name, image.stem) for image in images}


READERS: dict[str, Callable[[DatasetSpec, str], Iterator[dict]]] = {
    "pairs": read_label_pairs,
    "scenes": read_scenes,
    "skysa": read_skysa,
    "captions": read_captions,
    "table": read_table,
    "shards": read_shards,
    "rsvqa": read_rsvqa,
    "text questions": read_text_questions,
    "conversations": read_conversations,
    "boxes": read_box_labels,
    "points": read_point_labels,
    "marks": read_marks,
    "shapes": read_shapes,
    "listed scenes": read_listed_scenes,
    "split folders": read_split_folders,
}
