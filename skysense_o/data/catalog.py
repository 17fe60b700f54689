"""All data sets and their names, registered in Detectron2's catalogues."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from skysense_o.data.captions import is_caption_source, read_captioned_images
from skysense_o.data.datasets.classification import SCENES
from skysense_o.data.datasets.extraction import EXTRACTION
from skysense_o.data.datasets.language import LANGUAGE
from skysense_o.data.datasets.segmentation import SEGMENTATION
from skysense_o.data.datasets.spec import DatasetSpec, data_root
from skysense_o.data.datasets.weak import WEAK
from skysense_o.data.own import own_spec
from skysense_o.data.records import load_split
from skysense_o.sample import IGNORE

__all__ = [
    "SPECS",
    "DatasetSpec",
    "data_root",
    "evaluation_splits",
    "find",
    "load_split",
    "records_of",
    "register_all",
    "register_folders",
    "spec_of",
]

SPECS: tuple[DatasetSpec, ...] = (*SEGMENTATION, *EXTRACTION, *SCENES, *LANGUAGE, *WEAK)
_BY_NAME = {spec.name: spec for spec in SPECS}


def register_all() -> None:
    """Register every split of every data set with Detectron2; the files of a split are read on its first use."""
    for spec in SPECS:
        _register(spec)


def register_folders(paths: Iterable[str]) -> None:
    """Register a user's own folders (DATASETS.FOLDERS) as `<name>_<split>`; `<name>` comes from their dataset.yaml."""
    for path in paths:
        spec = own_spec(str(path))
        if spec.name in _BY_NAME:
            raise ValueError(
                f"{path}: the name {spec.name!r} belongs to another data set: choose another one in dataset.yaml"
            )
        _register(spec)


def _register(spec: DatasetSpec, names: dict[str, str] | None = None) -> None:
    for name, split in (names or spec.split_names()).items():
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, partial(load_split, spec, split))
            MetadataCatalog.get(name).set(
                class_table=spec.class_table_name, ignore_label=IGNORE, task=spec.task, spec=spec.key, split=split
            )


def spec_of(key: str) -> DatasetSpec:
    """The description of a data set, by its name or, for a user's own folder, by its path."""
    return _BY_NAME.get(key) or own_spec(key)


def find(name: str) -> list[tuple[DatasetSpec, str]]:
    """Find the splits that a name stands for.

    `dubai_val`, an alias or `my/folder:val` stands for one split, `dubai` for all splits of the set.

    Returns:
        (data set, split) pairs.

    Raises:
        KeyError: there is no such name; the message offers similar names.
        FileNotFoundError, ValueError: the name is the path of a folder that is not a data set.

    >>> [(spec.name, split) for spec, split in find("isaid_test")]  # an alias
    [('isaid', 'val')]
    """
    if name in DatasetCatalog.list() and "spec" in MetadataCatalog.get(name).as_dict():
        meta = MetadataCatalog.get(name)
        return [(spec_of(meta.spec), meta.split)]
    if name in _BY_NAME:
        return [(_BY_NAME[name], split) for split in _BY_NAME[name].splits]
    path, _, split = name.partition(":")
    if os.path.isdir(os.path.expanduser(path)):
        spec = own_spec(path)
        if split and split not in spec.splits:
            raise KeyError(f"{path} has no split {split!r}; its splits are {', '.join(spec.splits)}")
        return [(spec, one) for one in ([split] if split else spec.splits)]
    known = [n for spec in SPECS for n in spec.split_names()]
    near = get_close_matches(name, [*known, *_BY_NAME], 5)
    hint = f"similar: {', '.join(near)}; " if near else ""
    raise KeyError(
        f"unknown data set {name!r}; {hint}choose one of {', '.join(spec.name for spec in SPECS)} or one of their"
        " splits (tools/check_dataset.py --list), or give the path of a folder with a dataset.yaml"
    )


def evaluation_splits() -> list[tuple[str, DatasetSpec]]:
    """(split name, data set) pairs that DATASETS.TEST "all" stands for: test if the data set has it, else val or all.

    Data sets with boxes or points are left out, because `evaluation/words.py` evaluates them.
    """
    chosen = []
    for spec in (s for s in SPECS if s.task not in ("boxes", "points")):
        split = next((s for s in ("test", "val", "all") if s in spec.splits), None)
        if split:
            chosen.append((f"{spec.name}_{split}", spec))
    return chosen


def records_of(name: str, skip_bad: bool = False) -> list[dict]:
    """Load the records of a data set.

    Args:
        name: see `find`; or a path to images with captions, see `read_captioned_images`.
        skip_bad: leave out images whose label is missing, with a warning that lists them.

    Raises:
        KeyError: the name is unknown; the message offers similar names.
        FileNotFoundError: the data is not there; the message says what to do.
    """
    if is_caption_source(name):
        MetadataCatalog.get(name).set(task="image-text")
        return read_captioned_images(name, data_root())
    found = DatasetCatalog.list()
    if name in found and "spec" not in MetadataCatalog.get(name).as_dict():
        return DatasetCatalog.get(name)  # registered by other code
    splits = find(name)
    if name not in found:  # a path or a whole data set: register its classes, which evaluation looks up by this name
        spec = splits[0][0]
        MetadataCatalog.get(name).set(class_table=spec.class_table_name, ignore_label=IGNORE, task=spec.task)
    if len(splits) == 1:
        return load_split(*splits[0], skip_bad)
    parts = [record for spec, split in splits for record in load_split(spec, split, skip_bad)]
    return list({(r["file_name"], r.get("at"), r.get("question")): r for r in parts}.values())  # splits may overlap
