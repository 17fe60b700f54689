"""The input of a review: the tiles of a work folder with their proposed regions and names."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from skysense_o.data_engine.work_folder import read_json, read_map
from skysense_o.image_io import read_image


class Proposed(NamedTuple):
    """The proposal for one region.

    Attributes:
        name: proposed name, "" if there is none.
        confidence: 0..1.
        candidates: (name, score) pairs, best first.
    """

    name: str
    confidence: float
    candidates: tuple[tuple[str, float], ...]


class Tiles:
    """The tiles of a work folder that have regions, with the proposals for them.

    Raises:
        FileNotFoundError: the folder does not exist or has no regions.
    """

    def __init__(self, work: Path) -> None:
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
        """Region number -> proposal for the regions of a tile.

        Raises:
            ValueError: the tile is unknown. Browsers show the message, so it does not contain the folder's path.
        """
        if tile not in self.proposed:
            raise ValueError(f"{tile!r} is not one of the {len(self)} tiles with regions")
        return self.proposed[tile]

    def highest(self, tile: str) -> int:
        """The highest region number of a tile."""
        return max(self.known(tile), default=0)

    def labels(self, tile: str) -> np.ndarray:
        """int32 (H,W), the number of each pixel's region; 0 for none."""
        return read_map(self.work / "regions" / f"{tile}.png").astype(np.int32)

    def image(self, tile: str) -> np.ndarray:
        """The pixels of a tile, uint8 (H,W,3)."""
        return read_image(self.work / "tiles" / f"{tile}.png").rgb.copy()

    def names(self) -> set[str]:
        """All names that a model gave to regions, and all candidates for names, of all tiles."""
        rows = [row for regions in self.proposed.values() for row in regions.values()]
        return {row.name for row in rows if row.name} | {name for row in rows for name, _ in row.candidates}
