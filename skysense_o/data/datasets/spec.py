"""A data set is a row: where its files lie, how labels are encoded, where it comes from, what may be done with it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Task = Literal["segmentation", "classification", "image-text", "vqa", "boxes", "points"]


@dataclass(frozen=True)
class DatasetSpec:
    """One data set. Its splits are named `<name>_<split>`, as `dubai_val`; `aliases` are names that others use.

    Folders are relative to `<DETECTRON2_DATASETS>/<folder>`; "{split}" in them is the split's name.
    """

    name: str
    task: Task
    homepage: str
    licence: str
    citation: str
    folder: str = ""  # below DETECTRON2_DATASETS; the name where empty
    format: str = "pairs"  # how the files are read: see `records.READERS`
    splits: dict[str, str] = field(default_factory=dict)  # split -> glob of image stems, or what the form says
    images: str = "img_dir/{split}"
    labels: str = "ann_dir/{split}"
    image_suffix: str = ".png"  # alternatives with bars: ".jpg|.tif"
    label_suffix: str = ".png"
    index: str = ""  # the file that lists images, captions or questions; alternatives with bars
    class_file: str = ""  # datasets/classes/<class_file>.json; the name where empty; "-": names are in the records
    ignore: tuple[int, ...] = (255,)  # stored label values that belong to no class
    offset: int = 0  # stored label value minus this is the class id
    aliases: dict[str, str] = field(default_factory=dict)  # another name -> split
    gsd: str = ""  # metres a pixel
    size: str = ""  # of the download
    counts: dict[str, int] = field(default_factory=dict)  # split -> images (questions for vqa) expected
    prepare: str = ""  # the command that makes the folders; empty: used as published
    crop: tuple[int, int, int] = (0, 0, 0)  # width, height, overlap that `prepare` cuts to; 0: whole images
    graph: str = ""  # file of the relation graph, for splits named graph_*
    note: str = ""

    @property
    def class_table_name(self) -> str:
        """Name of the class table; "" where there is none, or each record brings its own names."""
        if self.class_file == "-" or self.task in ("image-text", "vqa"):
            return ""
        return self.class_file or self.name

    @property
    def key(self) -> str:
        """What a record carries to find its row again: the name, or the path of a folder of one's own."""
        return self.folder if Path(self.folder).is_absolute() else self.name

    @property
    def root(self) -> Path:
        """The folder of the data set, there or not."""
        return data_root() / (self.folder or self.name)

    @property
    def hint(self) -> str:
        """What to do when something is missing."""
        get = f"get {self.name} from {self.homepage} ({self.licence})"
        steps = f"{get} and run: {self.prepare}" if self.prepare else f"{get} and put it there"
        return f"{steps}; or set DETECTRON2_DATASETS to the folder that holds {self.folder or self.name!r}"

    def split_names(self) -> dict[str, str]:
        """Every name this row answers to -> split."""
        return {**{f"{self.name}_{split}": split for split in self.splits}, **self.aliases}


def prepared_spec(name: str, script: str = "", source: str = "", **rest) -> DatasetSpec:
    """A spec whose folders are made by a script in datasets/."""
    script = script or f"prepare_{name}.py"
    command = f"python datasets/{script} --source {source or 'FOLDER_OR_ZIP'}"
    return DatasetSpec(name=name, task="segmentation", prepare=command, **rest)


def data_root() -> Path:
    """The folder that holds the data sets: DETECTRON2_DATASETS, else ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
