"""The table of data sets, the names they answer to, and what Detectron2's catalogues get from it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path

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
    """Give every split of every row to Detectron2's catalogues; nothing is read before it is asked for."""
    for spec in SPECS:
        _register(spec)


def register_folders(paths: Iterable[str]) -> None:
    """Folders of one's own (DATASETS.FOLDERS) get names: `<name>_<split>`, the name from their dataset.yaml."""
    for path in paths:
        spec = own_spec(str(path))
        if spec.name in _BY_NAME:
            raise ValueError(
                f"{path}: the name {spec.name!r} is that of a row of ours; give it another in dataset.yaml"
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
    """The row of a record's `dataset`: a name of the table, or the path of a folder of one's own."""
    return _BY_NAME.get(key) or own_spec(key)


def find(name: str) -> list[tuple[DatasetSpec, str]]:
    """The splits a name means: `dubai_val` or an alias: one; `dubai`: all of them; `my/folder:val`, `my/folder`.

    Raises:
        KeyError: no such name; offers near ones. FileNotFoundError, ValueError: a folder that is not a data set.
    """
    if name in DatasetCatalog.list() and "spec" in MetadataCatalog.get(name).as_dict():
        meta = MetadataCatalog.get(name)
        return [(spec_of(meta.spec), meta.split)]
    if name in _BY_NAME:
        return [(_BY_NAME[name], split) for split in _BY_NAME[name].splits]
    path, _, split = name.partition(":")
    if Path(path).expanduser().is_dir():
        spec = own_spec(path)
        if split and split not in spec.splits:
            raise KeyError(f"{path} has no split {split!r}: there are {', '.join(spec.splits)}")
        return [(spec, one) for one in ([split] if split else spec.splits)]
    known = [n for spec in SPECS for n in spec.split_names()]
    near = get_close_matches(name, [*known, *_BY_NAME], 5)
    hint = f"near it: {', '.join(near)}; " if near else ""
    raise KeyError(
        f"unknown data set {name!r}; {hint}known: {', '.join(spec.name for spec in SPECS)}, each with its splits"
        " (tools/check_dataset.py --list), or the path of a folder with a dataset.yaml"
    )


def evaluation_splits() -> list[tuple[str, DatasetSpec]]:
    """What "all" means in an evaluation: of each row its test split, else val, else all; rows without are left out, and
    so are boxes and points, which `evaluation.words` asks for.
    """
    chosen = []
    for spec in (s for s in SPECS if s.task not in ("boxes", "points")):
        split = next((s for s in ("test", "val", "all") if s in spec.splits), None)
        if split:
            chosen.append((f"{spec.name}_{split}", spec))
    return chosen


def records_of(name: str, skip_bad: bool = False) -> list[dict]:
    """The records of a data set, by any of its names, or of a path to images with captions (see `read_pairs`).

    Args:
        skip_bad: leave out images whose label is missing, with a warning that lists them.

    Raises:
        KeyError: unknown name; offers near ones. FileNotFoundError: the data is not there; says what to do.
    """
    if is_caption_source(name):
        MetadataCatalog.get(name).set(task="image-text")
        return read_captioned_images(name, data_root())
    found = DatasetCatalog.list()
    if name in found and "spec" not in MetadataCatalog.get(name).as_dict():
        return DatasetCatalog.get(name)  # registered by someone else
    splits = find(name)
    if name not in found:  # a path, or a whole row: evaluation looks its classes up by this name
        spec = splits[0][0]
        MetadataCatalog.get(name).set(class_table=spec.class_table_name, ignore_label=IGNORE, task=spec.task)
    if len(splits) == 1:
        return load_split(*splits[0], skip_bad)
    parts = [record for spec, split in splits for record in load_split(spec, split, skip_bad)]
    return list({(r["file_name"], r.get("at"), r.get("question")): r for r in parts}.values())  # splits may overlap
