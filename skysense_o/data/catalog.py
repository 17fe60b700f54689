"""The table of data sets, and what Detectron2's catalogues get from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from skysense_o.data.pairs import read_pairs


@dataclass(frozen=True)
class Row:
    """A data set of pictures and label pictures. Split names follow `<name>_<split>`, as `dubai_val`."""

    name: str  # folder below DETECTRON2_DATASETS, and class table
    splits: dict[str, str]  # split -> glob of image stems
    images: str  # folder of pictures, below the data set's
    labels: str  # folder of label pictures of the same stem
    image_suffix: str
    label_suffix: str
    ignore: int  # label value that belongs to no class
    homepage: str
    licence: str


ROWS = (
    Row(
        name="dubai",
        # By scene, never by part: the nine parts of a scene adjoin.
        splits={
            "train": "tile[12348]_*",
            "val": "tile[56]_*",
            **{f"scene{s}": f"tile{s}_*" for s in (1, 2, 3, 4, 5, 6, 8)},
            **{f"without_scene{s}": f"tile[!{s}]_*" for s in (1, 2, 3, 4, 5, 6, 8)},
        },
        images="images",
        labels="labels",
        image_suffix=".jpg",
        label_suffix=".png",
        ignore=255,
        homepage="https://humansintheloop.org/resources/datasets/semantic-segmentation-dataset-2/",
        licence="CC0, as its publishers (Humans in the Loop, MBRSC) give it",
    ),
)


def data_root() -> Path:
    """The folder that holds the data sets: DETECTRON2_DATASETS, else ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def load_split(row: Row, split: str) -> list[dict]:
    """Detectron2 records {file_name, sem_seg_file_name, dataset} of one split, sorted by file name.

    Raises:
        FileNotFoundError: folder, pictures or a label missing; says where it looked and what to do.
    """
    folder = data_root() / row.name
    cure = (
        f"put {row.name} ({row.homepage}; {row.licence}) there, or set DETECTRON2_DATASETS to the folder that holds"
        f" {row.name!r}"
    )
    images = sorted((folder / row.images).glob(row.splits[split] + row.image_suffix))
    if not images:
        pattern = folder / row.images / (row.splits[split] + row.image_suffix)
        raise FileNotFoundError(f"no pictures of {row.name}_{split} at {pattern}: {cure}")
    records = []
    for image in images:
        label = folder / row.labels / (image.stem + row.label_suffix)
        if not label.is_file():
            raise FileNotFoundError(f"{image} has no label picture {label}: {cure}")
        records.append({"file_name": str(image), "sem_seg_file_name": str(label), "dataset": row.name})
    return records


def register_all() -> None:
    """Give every split of every row to Detectron2's catalogues; nothing is read before it is asked for."""
    for row in ROWS:
        for split in row.splits:
            name = f"{row.name}_{split}"
            if name not in DatasetCatalog.list():
                DatasetCatalog.register(name, partial(load_split, row, split))
                MetadataCatalog.get(name).set(class_table=row.name, ignore_label=row.ignore)


def records_of(name: str) -> list[dict]:
    """The records of a registered data set, or of a path to pairs (see `read_pairs`).

    Raises:
        KeyError: neither; lists what is registered.
    """
    if name.partition("@")[0].endswith((".jsonl", ".csv", ".tar", "/")):
        return read_pairs(name, data_root())
    ours = [f"{row.name}_{split}" for row in ROWS for split in row.splits]
    if name not in DatasetCatalog.list():
        raise KeyError(f"unknown data set {name!r}; known: {', '.join(ours)}")
    return DatasetCatalog.get(name)
