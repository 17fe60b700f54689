"""The table of data sets, the names they answer to, and what Detectron2's catalogues get from it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from skysense_o.data.captions import is_pairs, read_pairs
from skysense_o.data.datasets.classification import SCENES
from skysense_o.data.datasets.language import LANGUAGE
from skysense_o.data.datasets.segmentation import SEGMENTATION
from skysense_o.data.datasets.spec import Row, data_root
from skysense_o.data.own import own_row
from skysense_o.data.records import load_split
from skysense_o.sample import IGNORE

__all__ = [
    "ROWS",
    "Row",
    "data_root",
    "evaluation_splits",
    "find",
    "load_split",
    "records_of",
    "register_all",
    "register_folders",
    "row_of",
]

ROWS: tuple[Row, ...] = (*SEGMENTATION, *SCENES, *LANGUAGE)
_BY_NAME = {row.name: row for row in ROWS}


def register_all() -> None:
    """Give every split of every row to Detectron2's catalogues; nothing is read before it is asked for."""
    for row in ROWS:
        _register(row)


def register_folders(paths: Iterable[str]) -> None:
    """Folders of one's own (DATASETS.FOLDERS) get names: `<name>_<split>`, the name from their dataset.yaml."""
    for path in paths:
        row = own_row(str(path))
        if row.name in _BY_NAME:
            raise ValueError(f"{path}: the name {row.name!r} is that of a row of ours; give it another in dataset.yaml")
        _register(row)


def _register(row: Row, names: dict[str, str] | None = None) -> None:
    for name, split in (names or row.names()).items():
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, partial(load_split, row, split))
            MetadataCatalog.get(name).set(
                class_table=row.classes, ignore_label=IGNORE, task=row.task, row=row.key, split=split
            )


def row_of(key: str) -> Row:
    """The row of a record's `dataset`: a name of the table, or the path of a folder of one's own."""
    return _BY_NAME.get(key) or own_row(key)


def find(name: str) -> list[tuple[Row, str]]:
    """The splits a name means: `dubai_val` or an alias: one; `dubai`: all of them; `my/folder:val`, `my/folder`.

    Raises:
        KeyError: no such name; offers near ones. FileNotFoundError, ValueError: a folder that is not a data set.
    """
    if name in DatasetCatalog.list() and "row" in MetadataCatalog.get(name).as_dict():
        meta = MetadataCatalog.get(name)
        return [(row_of(meta.row), meta.split)]
    if name in _BY_NAME:
        return [(_BY_NAME[name], split) for split in _BY_NAME[name].splits]
    path, _, split = name.partition(":")
    if Path(path).expanduser().is_dir():
        row = own_row(path)
        if split and split not in row.splits:
            raise KeyError(f"{path} has no split {split!r}: there are {', '.join(row.splits)}")
        return [(row, one) for one in ([split] if split else row.splits)]
    known = [n for row in ROWS for n in row.names()]
    near = get_close_matches(name, [*known, *_BY_NAME], 5)
    hint = f"near it: {', '.join(near)}; " if near else ""
    raise KeyError(
        f"unknown data set {name!r}; {hint}known: {', '.join(row.name for row in ROWS)}, each with its splits"
        " (tools/check_dataset.py --list), or the path of a folder with a dataset.yaml"
    )


def evaluation_splits() -> list[tuple[str, Row]]:
    """What "all" means in an evaluation: of each row its test split, else val, else all; rows without are left out."""
    chosen = []
    for row in ROWS:
        split = next((s for s in ("test", "val", "all") if s in row.splits), None)
        if split:
            chosen.append((f"{row.name}_{split}", row))
    return chosen


def records_of(name: str, skip_bad: bool = False) -> list[dict]:
    """The records of a data set, by any of its names, or of a path to images with captions (see `read_pairs`).

    Args:
        skip_bad: leave out images whose label is missing, with a warning that lists them.

    Raises:
        KeyError: unknown name; offers near ones. FileNotFoundError: the data is not there; says what to do.
    """
    if is_pairs(name):
        MetadataCatalog.get(name).set(task="image-text")
        return read_pairs(name, data_root())
    found = DatasetCatalog.list()
    if name in found and "row" not in MetadataCatalog.get(name).as_dict():
        return DatasetCatalog.get(name)  # registered by someone else
    splits = find(name)
    if name not in found:  # a path, or a whole row: evaluation looks its classes up by this name
        row = splits[0][0]
        MetadataCatalog.get(name).set(class_table=row.classes, ignore_label=IGNORE, task=row.task)
    if len(splits) == 1:
        return load_split(*splits[0], skip_bad)
    parts = [record for row, split in splits for record in load_split(row, split, skip_bad)]
    return list({(r["file_name"], r.get("at"), r.get("question")): r for r in parts}.values())  # splits may overlap
