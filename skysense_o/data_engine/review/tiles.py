"""What reviewers are shown: the tiles of a work folder with their proposed regions and names."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from skysense_o.data_engine.work_folder import read_json, read_map


class Proposed(NamedTuple):
    """name: "" where none was found. candidates: (name, score) pairs, best first."""

    name: str
    confidence: float
    candidates: tuple[tuple[str, float], ...]


class Tiles:
    """The tiles of a work folder that have regions; which regions each has, and what they were called."""

    def __init__(self, work: Path) -> None:
        """
        Raises:
            FileNotFoundError: no folder, or no regions in it yet.
        """
        self.work = work
        stems = sorted(path.stem for path in (work / "regions").glob("*.png"))
        if not stems:
            raise FileNotFoundError(
                f"{work} has no regions to review: make them with python tools/data_engine.py propose --work {work}"
            )
        self.proposed: dict[str, dict[int, Proposed]] = {stem: self._regions(stem) for stem in stems}

    def __iter__(self):
        return iter(self.proposed)

    def __len__(self) -> int:
        return len(self.proposed)

    def _regions(self, tile: str) -> dict[int, Proposed]:
        regions = {row["region"]: Proposed("", 0.0, ()) for row in self._rows("regions", tile) if row["region"]}
        for row in self._rows("names", tile):
            candidates = tuple((name, float(score)) for name, score in row.get("candidates", ()))
            regions[row["region"]] = Proposed(row["name"], float(row["confidence"]), candidates)
        return dict(sorted(regions.items()))

    def _rows(self, folder: str, tile: str) -> list[dict]:
        path = self.work / folder / f"{tile}.json"
        return read_json(path) if path.exists() else []

    def known(self, tile: str) -> dict[int, Proposed]:
        """
        Raises:
            ValueError: no such tile; the folder's place is not in the words, which browsers see.
        """
        if tile not in self.proposed:
            raise ValueError(f"{tile!r} is no tile with regions; there are {len(self)} others")
        return self.proposed[tile]

    def highest(self, tile: str) -> int:
        return max(self.known(tile), default=0)

    def labels(self, tile: str) -> np.ndarray:
        """(H,W) int32, the number of the region each pixel is in; 0 is the rest."""
        return read_map(self.work / "regions" / f"{tile}.png").astype(np.int32)

    def image(self, tile: str) -> np.ndarray:
        """(H,W,3) uint8."""
        with Image.open(self.work / "tiles" / f"{tile}.png") as file:
            return np.array(file.convert("RGB"))

    def names(self) -> set[str]:
        """All that regions were called or might have been."""
        rows = [row for regions in self.proposed.values() for row in regions.values()]
        return {row.name for row in rows if row.name} | {name for row in rows for name, _ in row.candidates}
