"""A user's own data set: a folder with images, label images and a `dataset.yaml`.

    mine/
      dataset.yaml
      img_dir/train/a.jpg   img_dir/val/b.jpg     (or images directly in img_dir: one split, "all")
      ann_dir/train/a.png   ann_dir/val/b.png     one channel; the value of a pixel is its class

    # dataset.yaml
    name: mine
    ignore: 255                # a label value or a list of them; default 255
    offset: 0                  # label value of the first class
    classes:
      - water
      - {name: road, synonyms: [street, highway], color: [232, 60, 200]}
      - {name: other, background: true}

Use it by its path, `mine:val` (`mine` for all splits), or by its name, `mine_val`, if DATASETS.FOLDERS lists the path.
A folder in Sky-SA's format, as tools/data_engine.py publishes it, needs no dataset.yaml. Its splits are `set:train`,
`set:val`, and `set:graph_train` if it has a relation graph.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from skysense_o.data.classes import OWN, load_classes
from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.sample import IGNORE
from skysense_o.text_files import read_json_lines, read_yaml, shown, take

INDEX, GRAPH = "skysa_dataset.jsonl", "skysa_graph.jsonl"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
KEYS = ("classes", "homepage", "ignore", "licence", "name", "offset")
LONGEST_NAME = 100
LARGEST = 65534
"""Largest label value of a class: labels have 8 or 16 bits, and one value is left to mark unknown pixels."""


@lru_cache
def own_spec(path: str) -> DatasetSpec:
    """Describe a folder as a data set.

    Args:
        path: path of the folder.

    Raises:
        FileNotFoundError: the folder, its dataset.yaml or its img_dir does not exist.
        ValueError: dataset.yaml cannot be used. The message names the file, the key and what is permitted.
    """
    folder = Path(os.path.expanduser(path))  # os.path.expanduser keeps ~name if there is no such user
    if (folder / INDEX).is_file() and not (folder / OWN).is_file():
        return _skysa_spec(folder)
    if not (folder / OWN).is_file():
        raise FileNotFoundError(f"{folder} has no {OWN}, which lists the classes; datasets/README.md shows one")
    body = _read_yaml(folder / OWN)
    count = len(load_classes(str(folder)))
    if count > IGNORE:
        raise ValueError(f"{folder / OWN}: 'classes' has {count} classes: at most {IGNORE} fit into label images")
    if not (folder / "img_dir").is_dir():
        raise FileNotFoundError(f"{folder} has no img_dir: put images there and label images into ann_dir")
    splits = _splits(folder)
    images, labels = ("img_dir/{split}", "ann_dir/{split}") if splits != ["all"] else ("img_dir", "ann_dir")
    return DatasetSpec(
        name=body.get("name", folder.resolve().name),
        task="segmentation",
        folder=str(folder.resolve()),
        splits=dict.fromkeys(splits, "*"),
        images=images,
        labels=labels,
        image_suffix="|".join(IMAGE_SUFFIXES),
        label_suffix=".png|.tif|.tiff",
        class_file=str(folder.resolve()),
        ignore=_ignored(body, folder / OWN),
        offset=_offset(body, folder / OWN, count),
        homepage=str(body.get("homepage", "your own")),
        licence=str(body.get("licence", "yours")),
        citation="",
    )


def _read_yaml(path: Path) -> dict:
    """Read a dataset.yaml, and check that its keys are known and that its name can be a file name."""
    body = read_yaml(path)
    if not isinstance(body, dict) or set(body) - set(KEYS):
        wrong = sorted(map(str, set(body) - set(KEYS))) if isinstance(body, dict) else shown(body)
        raise ValueError(f"{path} holds the unknown keys {wrong}: use {', '.join(KEYS)}")
    name = body.get("name", "a")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{path}: 'name' is {shown(name)}: it must be text (quote numbers), or leave the key out")
    if len(name) > LONGEST_NAME or name.startswith(".") or {"/", "\\", ":", "@"} & set(name):
        raise ValueError(
            f"{path}: 'name' is {shown(name)}: files are named after it, so write at most {LONGEST_NAME}"
            " characters, without / \\ : @ and without a dot at the beginning"
        )
    return body


def _ignored(body: dict, path: Path) -> tuple[int, ...]:
    """Read `ignore` of dataset.yaml: the label values that belong to no class."""
    values = body.get("ignore", 255)
    values = values if isinstance(values, list) else [values]
    if not all(type(value) is int and 0 <= value <= LARGEST for value in values):
        raise ValueError(
            f"{path}: 'ignore' is {shown(body['ignore'])}: it must be a whole number from 0 to {LARGEST}, or a list"
            " of them, without quotes; leave the key out for 255"
        )
    return tuple(values)


def _offset(body: dict, path: Path, classes: int) -> int:
    """Read `offset` of dataset.yaml: the label value of the first class."""
    offset = body.get("offset", 0)
    if type(offset) is not int or not 0 <= offset <= LARGEST + 1 - classes:
        raise ValueError(
            f"{path}: 'offset' is {shown(offset)}: it must be a whole number from 0 to {LARGEST + 1 - classes}, the"
            " label value of the first class; leave the key out for 0"
        )
    return offset


def _splits(folder: Path) -> list[str]:
    return sorted(
        path.name for path in (folder / "img_dir").iterdir() if path.is_dir() and not path.name.startswith(".")
    ) or ["all"]


def _skysa_spec(folder: Path) -> DatasetSpec:
    index = folder / INDEX
    found = {take(e, "split", str, f"{index}, line {n}", "train") for n, e in read_json_lines(index)}
    if not found:
        raise ValueError(f"{index} has no lines: one line per image is needed, see skysense_o/data/skysa.py")
    splits = sorted(found)
    if (folder / GRAPH).is_file() and "train" in found:
        splits.append("graph_train")
    return DatasetSpec(
        name=folder.resolve().name,
        task="segmentation",
        folder=str(folder.resolve()),
        format="skysa",
        splits=dict.fromkeys(splits, "*"),
        index=INDEX,
        graph=GRAPH,
        class_file="-",
        homepage="your own",
        licence="yours",
        citation="",
    )
