"""Sky-SA's index file: one JSON object a line.

    {"flickr_url": "img_dir/a.jpg", "segmentation": "ann_dir/a.png", "ann_list": [{"category_name": "road"}, ...]}

A label pixel of value k is the k-th entry of that image's `ann_list`; 255 is ignored. Sets of our data engine say the
"split" of each image, too; Sky-SA's own does not, and all of it is for training.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.sample import IGNORE

logger = logging.getLogger(__name__)


def read_skysa(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Records with "names" and, where a name is repeated, "ids": stored value k -> index into names.

    Splits named graph_* carry "graph", the file of the relation graph. What was odd is counted and logged at the end.
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
    """The lines of an index file, one at a time; `counts` is filled with what was met.

    Args:
        split: lines of another one are passed over; "": none are.

    Yields:
        {"file_name", "sem_seg_file_name", "names" [, "ids"]}, or {"bad": message} for a line that cannot be used.
    """
    folder = index.parent
    with open(index, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                if split and entry.get("split", split) != split:
                    continue
                names = [" ".join(item["category_name"].split()) for item in entry["ann_list"]]
                image, label = entry["flickr_url"], entry["segmentation"]
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                counts["lines not understood"] += 1
                yield {"bad": f"{index}, line {number} is not as Sky-SA's are ({type(error).__name__}: {error})"}
                continue
            if not any(names):
                counts["images without names left out"] += 1
                continue
            found = find_file(folder, "img_dir", image, counts), find_file(folder, "ann_dir", label, counts)
            if None in found:
                counts["files missing"] += 1
                lost = label if found[1] is None else image
                yield {"bad": f"{index}, line {number}: {lost!r} is not below {folder}"}
                continue
            counts["images"] += 1
            yield {"file_name": found[0], "sem_seg_file_name": found[1], **merge_duplicate_names(names, counts)}


def find_file(folder: Path, below: str, written: str, counts: Counter) -> str | None:
    """A path as it is written, from the data set's folder; else its last parts below `img_dir` or `ann_dir`."""
    plain = written.replace("\\", "/")
    if (folder / plain).is_file():
        return str(folder / plain)
    parts = Path(plain).parts
    for first in range(len(parts)):  # the longest tail that exists
        candidate = folder / below / Path(*parts[first:]) if first or not Path(plain).is_absolute() else None
        if candidate is not None and candidate.is_file():
            counts["paths found by their last parts"] += 1
            return str(candidate)
    return None


def merge_duplicate_names(names: list[str], counts: Counter) -> dict:
    """Repeated names become one (upper and lower case are not told apart): {"names" [, "ids"]}.

    Raises:
        ValueError: more than 255 names, which one byte a pixel cannot tell apart from "ignored".
    """
    if len(names) > IGNORE:
        raise ValueError(f"{len(names)} names for one image: label images hold at most {IGNORE}")
    place: dict[str, int] = {}
    kept: list[str] = []
    ids = []
    for name in names:
        if not name:
            ids.append(IGNORE)
            counts["blank names ignored"] += 1
            continue
        if name.lower() not in place:
            place[name.lower()] = len(kept)
            kept.append(name)
        ids.append(place[name.lower()])
    if len(kept) == len(names):
        return {"names": tuple(kept)}
    counts["repeated names merged"] += sum(i != IGNORE for i in ids) - len(kept)
    return {"names": tuple(kept), "ids": tuple(ids)}
