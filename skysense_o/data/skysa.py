"""Sky-SA's index file: one JSON object per line.

    {"flickr_url": "img_dir/a.jpg", "segmentation": "ann_dir/a.png", "ann_list": [{"category_name": "road"}, ...]}

A pixel with label value k belongs to entry k of the image's `ann_list`, counted from 0; 255 is ignored. In data sets
that our data engine wrote, a line also has the "split" of the image. Sky-SA itself has no splits: all its images are
for training.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.sample import IGNORE
from skysense_o.text_files import numbered_lines, parse_json, take

logger = logging.getLogger(__name__)


def read_skysa(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read the records of a split; defects of the index are counted and logged at the end.

    Yields:
        records {"file_name", "sem_seg_file_name", "dataset", "names"}. If repeated names of an image were merged or
        blank names dropped, its record also has "ids": label value -> index into names, or IGNORE. Records of splits
        named graph_* also have "graph", the file of the relation graph.

    Raises:
        FileNotFoundError: the index or the graph is missing.
    """
    index = spec.root / spec.index
    graph = {"graph": str(spec.root / spec.graph)} if split.startswith("graph") else {}
    if not index.is_file():
        raise FileNotFoundError(f"{spec.name} has no {index}: {spec.hint}")
    if graph and not Path(graph["graph"]).is_file():
        raise FileNotFoundError(
            f"{spec.name}_{split} needs {graph['graph']}: tools/build_graph.py makes one; {spec.hint}"
        )
    counts: Counter = Counter()
    for record in read_index(index, counts, split.removeprefix("graph_")):
        yield {**record, **graph, "dataset": spec.key} if "bad" not in record else record
    logger.info("%s: %s", index, ", ".join(f"{count} {what}" for what, count in counts.items()))


def read_index(index: Path, counts: Counter, split: str = "") -> Iterator[dict]:
    """Read an index file, line by line.

    Args:
        counts: this function adds the numbers of images and of defects here.
        split: only read lines of this split; "": read all.

    Yields:
        {"file_name", "sem_seg_file_name", "names" [, "ids"]}, or {"bad": message} for a line that cannot be used.
    """
    folder = index.parent
    for number, line in numbered_lines(index):
        where = f"{index}, line {number}"
        try:
            entry = parse_json(line, where)
            if split and take(entry, "split", str, where, split) != split:
                continue
            entries = take(entry, "ann_list", list, where)
            names = [" ".join(take(one, "category_name", str, f"{where}: 'ann_list'").split()) for one in entries]
            image, label = (take(entry, key, str, where) for key in ("flickr_url", "segmentation"))
            merged = merge_duplicate_names(names, counts)
        except ValueError as error:
            counts["lines not understood"] += 1
            yield {"bad": str(error) if where in str(error) else f"{where}: {error}"}
            continue
        if not any(names):
            counts["images without names left out"] += 1
            continue
        paths = find_file(folder, "img_dir", image, counts), find_file(folder, "ann_dir", label, counts)
        if None in paths:
            counts["files missing"] += 1
            lost = label if paths[1] is None else image
            yield {"bad": f"{where}: {lost!r} is not below {folder}"}
            continue
        counts["images"] += 1
        yield {"file_name": paths[0], "sem_seg_file_name": paths[1], **merged}


def find_file(folder: Path, below: str, written: str, counts: Counter) -> str | None:
    """Find a file of the data set.

    Args:
        folder: folder of the data set.
        below: "img_dir" or "ann_dir". If `written` does not exist, its last parts are looked for below this folder.
        written: path as the index gives it.
        counts: this function counts here how many files were found by the last parts of their paths.
    """
    plain = written.replace("\\", "/")
    if os.path.isfile(folder / plain):  # os.path.isfile also returns False for names that the system does not permit
        return str(folder / plain)
    parts = Path(plain).parts
    for first in range(len(parts)):  # leave out ever more folders at the beginning of the path
        candidate = folder / below / Path(*parts[first:]) if first or not Path(plain).is_absolute() else None
        if candidate is not None and os.path.isfile(candidate):
            counts["paths found by their last parts"] += 1
            return str(candidate)
    return None


def merge_duplicate_names(names: list[str], counts: Counter) -> dict:
    """Merge repeated names; upper and lower case count as equal.

    Returns:
        {"names"} and, if names were merged or blank, "ids": label value -> index into names, or IGNORE.

    Raises:
        ValueError: there are more than 255 names. Label images have one byte per pixel, and 255 is ignored.

    >>> merge_duplicate_names(["Lake", "road", "lake"], Counter())
    {'names': ('Lake', 'road'), 'ids': (0, 1, 0)}
    """
    if len(names) > IGNORE:
        raise ValueError(f"{len(names)} names for one image: label images hold at most {IGNORE}")
    index_of: dict[str, int] = {}
    kept: list[str] = []
    ids = []
    for name in names:
        if not name:
            ids.append(IGNORE)
            counts["blank names ignored"] += 1
            continue
        if name.lower() not in index_of:
            index_of[name.lower()] = len(kept)
            kept.append(name)
        ids.append(index_of[name.lower()])
    if len(kept) == len(names):
        return {"names": tuple(kept)}
    counts["repeated names merged"] += sum(i != IGNORE for i in ids) - len(kept)
    return {"names": tuple(kept), "ids": tuple(ids)}
