"""The description of a data set: its files, label encoding, source and licence."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Task = Literal["segmentation", "classification", "image-text", "vqa", "boxes", "points", "shapes"]


@dataclass(frozen=True)
class DatasetSpec:
    """One data set. Its splits have names such as `dubai_val`; `aliases` are names that other projects use.

    Folders are relative to `<DETECTRON2_DATASETS>/<folder>`; "{split}" in a path stands for the name of the split.
    """

    name: str
    task: Task
    homepage: str
    licence: str
    citation: str
    folder: str = ""  # below DETECTRON2_DATASETS; default: the name
    format: str = "pairs"  # how the files are read: see `records.READERS`
    splits: dict[str, str] = field(default_factory=dict)  # split -> pattern of image stems, or what the format needs
    images: str = "img_dir/{split}"
    labels: str = "ann_dir/{split}"
    image_suffix: str = ".png"  # suffixes to try, separated by bars: ".jpg|.tif"
    label_suffix: str = ".png"
    index: str = ""  # file that lists images, captions or questions; files to try are separated by bars
    scenes_index: str = ""  # JSON lines {"image", "class"} with the scene class of images that have other labels
    class_file: str = ""  # datasets/classes/<class_file>.json; default: the name; "-": each record lists its classes
    ignore: tuple[int, ...] = (255,)  # label values that belong to no class
    offset: int = 0  # label value of class 0
    aliases: dict[str, str] = field(default_factory=dict)  # another name -> split
    gsd: str = ""  # metres per pixel
    size: str = ""  # size of the download
    counts: dict[str, int] = field(default_factory=dict)  # split -> expected number of images, or of questions for vqa
    prepare: str = ""  # command that makes the folders; "": used as published
    crop: tuple[int, int, int] = (0, 0, 0)  # width, height, overlap of the windows that `prepare` cuts; 0: whole images
    one_class: bool = False  # label 0 only means "not the class of label 1", so its name cannot be used as a word
    graph: str = ""  # file of the relation graph, for splits named graph_*
    note: str = ""

    @property
    def class_table_name(self) -> str:
        """Name of the class table; "" if there is none or each record has its own names."""
        if self.class_file == "-" or self.task in ("image-text", "vqa"):
            return ""
        return self.class_file or self.name

    @property
    def key(self) -> str:
        """Value of "dataset" in the records: the name of the data set, or for a user's own folder its path."""
        return self.folder if Path(self.folder).is_absolute() else self.name

    @property
    def root(self) -> Path:
        """The folder of the data set, whether it exists or not."""
        return data_root() / (self.folder or self.name)

    @property
    def hint(self) -> str:
        """What to do if files are missing, for error messages."""
        if Path(self.folder).is_absolute():
            return f"put it into {self.folder}, your own data set"
        get = f"get {self.name} from {self.homepage} ({self.licence})"
        steps = f"{get} and run: {self.prepare}" if self.prepare else f"{get} and put it there"
        return f"{steps}; or set DETECTRON2_DATASETS to the folder that holds {self.folder or self.name!r}"

    def split_names(self) -> dict[str, str]:
        """Names of the splits, and aliases -> split."""
        return {**{f"{self.name}_{split}": split for split in self.splits}, **self.aliases}


def prepared_spec(name: str, script: str = "", source: str = "", **rest) -> DatasetSpec:
    """A spec whose folders are made by a script in datasets/."""
    script = script or f"prepare_{name}.py"
    command = f"python datasets/{script} --source {source or 'FOLDER_OR_ZIP'}"
    return DatasetSpec(name=name, task="segmentation", prepare=command, **rest)


def data_root() -> Path:
    """The folder of all data sets: DETECTRON2_DATASETS, else ./datasets."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
