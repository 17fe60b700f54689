"""One's own data set: a folder with images, label images and a `dataset.yaml`.

    mine/
      dataset.yaml
      img_dir/train/a.jpg   img_dir/val/b.jpg     (or images right below img_dir: one split, "all")
      ann_dir/train/a.png   ann_dir/val/b.png     one channel, a pixel's value is its class

    # dataset.yaml
    name: mine
    ignore: 255                # a value or a list; 255 where left out
    offset: 0                  # 1 where the first class is stored as 1
    classes:
      - water
      - {name: road, synonyms: [street, highway], color: [232, 60, 200]}
      - {name: other, background: true}

Used by its path, `mine:val` (`mine`: all splits), or by its name, `mine_val`, when DATASETS.FOLDERS lists the path.
A folder in the shape of Sky-SA, as tools/data_engine.py publishes it, needs no dataset.yaml: `set:train`, `set:val`,
and `set:graph_train` where it has a relation graph.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import yaml

from skysense_o.data.classes import OWN, load_classes
from skysense_o.data.datasets.spec import DatasetSpec

INDEX, GRAPH = "skysa_dataset.jsonl", "skysa_graph.jsonl"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@lru_cache
def own_spec(path: str) -> DatasetSpec:
    """The row of a folder.

    Raises:
        FileNotFoundError: no such folder, no dataset.yaml, no img_dir.
        ValueError: a dataset.yaml that cannot be used; says which key and what is permitted.
    """
    folder = Path(path).expanduser()
    if (folder / INDEX).is_file() and not (folder / OWN).is_file():
        return _skysa_row(folder)
    if not (folder / OWN).is_file():
        raise FileNotFoundError(f"{folder} has no {OWN}: it says the classes; datasets/README.md shows one")
    try:
        body = yaml.safe_load((folder / OWN).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{folder / OWN} is no YAML: {error}") from error
    known = {"name", "classes", "ignore", "offset", "licence", "homepage"}
    if not isinstance(body, dict) or set(body) - known:
        found = sorted(set(body) - known) if isinstance(body, dict) else body
        raise ValueError(f"{folder / OWN} holds {found!r}: permitted are {', '.join(sorted(known))}")
    load_classes(str(folder))
    if not (folder / "img_dir").is_dir():
        raise FileNotFoundError(f"{folder} has no img_dir: images belong there, labels into ann_dir")
    ignore = body.get("ignore", 255)
    return DatasetSpec(
        name=str(body.get("name", folder.resolve().name)),
        task="segmentation",
        folder=str(folder.resolve()),
        splits=dict.fromkeys(_splits(folder), "*"),
        images="img_dir/{split}" if _splits(folder) != ["all"] else "img_dir",
        labels="ann_dir/{split}" if _splits(folder) != ["all"] else "ann_dir",
        image_suffix="|".join(IMAGE_SUFFIXES),
        class_file=str(folder.resolve()),
        ignore=tuple(ignore) if isinstance(ignore, list) else (int(ignore),),
        offset=int(body.get("offset", 0)),
        homepage=str(body.get("homepage", "your own")),
        licence=str(body.get("licence", "yours")),
        citation="",
    )


def _splits(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "img_dir").iterdir() if p.is_dir()) or ["all"]


def _skysa_row(folder: Path) -> DatasetSpec:
    with open(folder / INDEX, encoding="utf-8") as file:
        found = {json.loads(line).get("split", "train") for line in file if line.strip()}
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
