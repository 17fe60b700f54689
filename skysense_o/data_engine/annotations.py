"""What is known of a tile in the end: people's decisions where there are any, else what the model is sure of.

Alphabet: H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skysense_o.data_engine.work_folder import WorkFolder, read_json, read_map
from skysense_o.sample import IGNORE


@dataclass
class TileAnnotation:
    """names: region -> name, of the regions that count. regions: (H,W). reviewed: people decided."""

    tile: str
    regions: np.ndarray
    names: dict[int, str]
    reviewed: bool

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """uint8 (H,W) ids into a list of names, each once, the largest first; IGNORE elsewhere and beyond 255 names."""
        ids = sorted(self.names)
        sizes = np.bincount(self.regions.ravel(), minlength=max(ids, default=0) + 1)
        total: dict[str, int] = {}
        for k in ids:
            total[self.names[k]] = total.get(self.names[k], 0) + int(sizes[k])
        names = sorted((n for n, size in total.items() if size), key=lambda n: (-total[n], n))[:IGNORE]
        table = np.full(max(int(self.regions.max()), *ids, 0) + 1, IGNORE, np.uint8)
        place = {name: i for i, name in enumerate(names)}
        for k in ids:
            table[k] = place.get(self.names[k], IGNORE)
        return table[self.regions], names


def tile_annotations(work: WorkFolder, confidence: float) -> Iterator[tuple[dict, TileAnnotation]]:
    """(row of the catalogue, annotation) of each kept tile that has names.

    review/final counts wherever it holds a tile, whatever the model's confidence; else names of at least `confidence`.

    Raises:
        ValueError: a confidence outside 0..1. FileNotFoundError: no tile has names.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"--confidence {confidence} is out of range: 0 to 1")
    found = False
    for row in work.kept():
        final = work / f"review/final/{row['tile']}.json"
        path = final if final.is_file() else work / f"names/{row['tile']}.json"
        if not path.is_file():
            continue
        found, reviewed = True, path == final
        regions = read_map(final.with_suffix(".png")) if reviewed else work.regions(row["tile"])
        names = {
            entry["region"]: entry["name"]
            for entry in read_json(path)
            if entry.get("name") and (reviewed or entry["confidence"] >= confidence)
        }
        yield row, TileAnnotation(row["tile"], regions, names, reviewed)
    if not found:
        raise FileNotFoundError(f"no names in {work.folder}: run name first")
