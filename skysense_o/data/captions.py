"""Images with captions or a class, from a user's own files: JSON lines, CSV, folders, webdataset shards.

A record is {"file_name", "captions": [...]}. If the class of the image is known, the record also has "names", the names
of all classes, and "label", the index of the image's class in "names". For an image in a shard, "file_name" is the tar
file, and "at" is the image's (first byte, number of bytes) in it.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from skysense_o.data.labels import load_image
from skysense_o.data.shards import member_bytes, read_shard
from skysense_o.image_io import RGBImage, images_in
from skysense_o.text_files import checked, read_csv, read_json_lines, take

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


def is_caption_source(source: str) -> bool:
    """Whether the name of a data set is a path for `read_captioned_images`. A folder must end in a slash.

    >>> is_caption_source("mine/captions.csv@train"), is_caption_source("mine/"), is_caption_source("dubai_val")
    (True, True, False)
    """
    return source.partition("@")[0].endswith((".jsonl", ".csv", ".tar", "/"))


def read_captioned_images(source: str, root: Path) -> list[dict]:
    """Read the records of a source. Image paths are relative to the source's own folder.

    Args:
        source: a path, relative to `root` or absolute. One of
            `x.jsonl` or `x.csv`: the fields `image` (a path), `caption` or `captions`, and optionally `split`;
            a folder with one folder per class;
            `x-*.tar`: webdataset shards, in which an image and a .txt, or a .json with "caption", share a stem.
            With `@train` at the end, only lines of that split are read.
        root: folder of relative sources.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the source has no record, or a line has no image or no caption.
    """
    location, _, split = source.partition("@")
    path = root / location
    if path.suffix == ".tar":
        records = [r for shard in sorted(path.parent.glob(path.name)) for r in read_shard(shard) if "bad" not in r]
    elif path.is_dir():
        records = _folders(path)
    elif path.is_file():
        records = _table(path, split)
    else:
        raise FileNotFoundError(f"nothing is at {path}: give .jsonl, .csv, .tar shards, or a folder of class folders/")
    if not records:
        which = f" of the split {split!r}" if split else ""
        raise ValueError(f"{path} has no record{which}: is it the right file or folder?")
    return records


def load_record_image(record: dict) -> RGBImage:
    """Read the image of a record, from its own file or from a shard.

    Raises:
        BadData: the image cannot be read.
    """
    if "at" not in record:
        return load_image(record["file_name"])
    return load_image(member_bytes(record), f"{record['file_name']}, bytes {record['at'][0]} on,")


def read_record_image(record: dict) -> np.ndarray:
    """Read the image of a record as an array.

    Returns:
        uint8 (H,W,3) RGB; pixels without data have the mean colour.

    Raises:
        BadData: the image cannot be read.
    """
    return load_record_image(record).filled()


def words_of(folder: str) -> str:
    """The name of a folder as words.

    >>> words_of("SeaLake"), words_of("parking_lot")
    ('sea lake', 'parking lot')
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", folder).lower()


def _table(path: Path, split: str) -> list[dict]:
    lines = list(read_csv(path)[1] if path.suffix == ".csv" else read_json_lines(path))
    text = (str, type(None))
    images = [Path(take(entry, "image", text, f"{path}, line {number}", None) or "") for number, entry in lines]
    folders = sorted({image.parent.name for image in images})
    records = []
    for (number, entry), image in zip(lines, images):
        where = f"{path}, line {number}"
        found = [take(entry, key, (list, *text), where, None) for key in ("captions", "caption")]
        captions = found[0] or found[1] or []
        captions = [captions] if isinstance(captions, str) else captions
        if not entry.get("image") or not captions:
            filled = ", ".join(str(key) for key, value in entry.items() if value) or "nothing"
            raise ValueError(f"{where}: image and caption or captions are needed, found {filled}")
        captions = [checked(caption, str, f"{where}: a caption") for caption in captions]
        if split and entry.get("split") != split:
            continue
        record = {"file_name": str(path.parent / image), "captions": captions}
        if len(folders) > 1:  # one folder per class
            record |= {"label": folders.index(image.parent.name), "names": [words_of(f) for f in folders]}
        records.append(record)
    return records


def _folders(path: Path) -> list[dict]:
    """Records of a folder with one folder per class. Each image gets a caption that names its class, for training."""
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    names = [words_of(p.name) for p in classes]
    return [
        {"file_name": str(file), "captions": [f"a satellite photo of {name}."], "label": label, "names": names}
        for label, (folder, name) in enumerate(zip(classes, names))
        for file in images_in(folder, IMAGES)
    ]
