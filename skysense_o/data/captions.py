"""Images with captions or a class, from files of the user's own: JSON lines, CSV, folders, webdataset shards.

A record is {"file_name", "captions": [...]} with, where a class is known, "label" and "names", all classes in order.
In a shard `file_name` is the tar file and "at" (first byte, bytes) the image in it.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np

from skysense_o.data.labels import load_image
from skysense_o.data.shards import member_bytes, read_shard
from skysense_o.image_io import RGBImage

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


def is_caption_source(source: str) -> bool:
    """Whether a name of a data set is a path that `read_pairs` reads; a folder is written with a slash at its end."""
    return source.partition("@")[0].endswith((".jsonl", ".csv", ".tar", "/"))


def read_captioned_images(source: str, root: Path) -> list[dict]:
    """Records of a source, whose paths start at its own folder.

    Args:
        source: below `root` or absolute: `x.jsonl` or `x.csv` (a path in `image`, texts in `caption` or `captions`,
            perhaps `split`); a folder with one folder a class; shards by a pattern, `x-*.tar` (members of one stem: a
            image, a .txt or a .json with "caption"). `@train` at the end takes the lines of that split.

    Raises:
        FileNotFoundError: nothing there. ValueError: no record in it, or a line without image or caption.
    """
    place, _, split = source.partition("@")
    path = root / place
    if path.suffix == ".tar":
        records = [r for shard in sorted(path.parent.glob(path.name)) for r in read_shard(shard) if "bad" not in r]
    elif path.is_dir():
        records = _folders(path)
    elif path.is_file():
        records = _table(path, split)
    else:
        raise FileNotFoundError(f"no pairs at {path}: give .jsonl, .csv, .tar shards, or a folder of class folders/")
    if not records:
        which = f" of the split {split!r}" if split else ""
        raise ValueError(f"{path} has no record{which}: is it the right one?")
    return records


def load_record_image(record: dict) -> RGBImage:
    """A record's image, out of its shard where it lies in one.

    Raises:
        BadData: it cannot be read.
    """
    if "at" not in record:
        return load_image(record["file_name"])
    return load_image(member_bytes(record), f"{record['file_name']}, bytes {record['at'][0]} on,")


def read_record_image(record: dict) -> np.ndarray:
    """uint8 (H,W,3) RGB of a record's image; pixels without data have the mean colour. Raises BadData."""
    return load_record_image(record).filled()


def words_of(folder: str) -> str:
    """A folder's name as words: "SeaLake" -> "sea lake", "parking_lot" -> "parking lot"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", folder).lower()


def _table(path: Path, split: str) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else (json.loads(line) for line in file if line.strip())
        lines = list(rows)
    folders = sorted({Path(line.get("image") or "").parent.name for line in lines})
    records = []
    for number, line in enumerate(lines, 1):
        captions = line.get("captions") or line.get("caption") or []
        captions = [captions] if isinstance(captions, str) else list(captions)
        if not line.get("image") or not captions:
            found = ", ".join(map(str, line))
            raise ValueError(f"{path}, record {number}: image and caption or captions are needed, found {found}")
        if split and line.get("split") != split:
            continue
        record = {"file_name": str(path.parent / line["image"]), "captions": captions}
        if len(folders) > 1:  # one folder a class
            record |= {"label": folders.index(Path(line["image"]).parent.name), "names": [words_of(f) for f in folders]}
        records.append(record)
    return records


def _folders(path: Path) -> list[dict]:
    """A caption is made of the class, so that such a set can train, too."""
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    names = [words_of(p.name) for p in classes]
    return [
        {"file_name": str(file), "captions": [f"a satellite photo of {name}."], "label": label, "names": names}
        for label, (folder, name) in enumerate(zip(classes, names))
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in IMAGES
    ]
