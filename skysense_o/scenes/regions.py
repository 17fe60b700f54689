"""Connected regions of one class in a label map of any size, found band by band.

Two pixels of a class belong together where they share a side. Memory: 4 bytes a pixel of a band, and about 100 bytes a
region (of a band: a region that crosses n borders between bands counts n + 1 times); MOST_PIECES bounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skysense_o.scenes.label_store import SCORE_STEPS
from skysense_o.scenes.pixel_area import PixelAreas

MOST_PIECES = 10_000_000
"""About 1 GB."""


def runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H,W) -> first pixel, counted row by row, and length of each stretch of one value within a row."""
    flat, width = labels.ravel(), labels.shape[1]
    change = np.ones(len(flat), bool)
    np.not_equal(flat[1:], flat[:-1], out=change[1:])
    change[::width] = True
    starts = np.flatnonzero(change)
    return starts, np.diff(starts, append=len(flat))


@dataclass
class Regions:
    """One row a region, numbered from 1 in the order of their first pixels. All arrays have N entries."""

    label: np.ndarray  # class id
    pixels: np.ndarray
    area: np.ndarray  # square metres, or pixels where the ground is not known
    score: np.ndarray  # mean probability, 0..1
    boxes: np.ndarray  # (N,4) x0, y0, x1, y1 in pixels, the end not included
    path: Path  # GeoTIFF, int32: the region of each pixel, 0 for none

    def __len__(self) -> int:
        return len(self.label)


class _Pieces:
    """What is known of the pieces of the bands so far: sums, boxes, and which pieces touch across a border."""

    def __init__(self) -> None:
        self.columns: list[np.ndarray] = []
        self.edges: list[np.ndarray] = []
        self.count = 0
        self.last: tuple[np.ndarray, np.ndarray] | None = None  # labels and pieces of the row above

    def add(self, labels: np.ndarray, score: np.ndarray, wanted: np.ndarray, top: int, areas: PixelAreas) -> np.ndarray:
        """A band -> (H,W) int32 piece of each pixel, counted from 1; 0 where the class is not wanted."""
        width = labels.shape[1]
        starts, lengths = runs(labels)
        value, row, col = labels.ravel()[starts], starts // width, starts % width
        kept = wanted[value]
        run_of = np.repeat(np.arange(len(starts), dtype=np.int32), lengths).reshape(labels.shape)
        below = (labels[1:] == labels[:-1]) & wanted[labels[1:]]
        upper, lower = run_of[:-1][below], run_of[1:][below]
        first = np.ones(len(upper), bool)
        first[1:] = (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])
        graph = coo_array((first[first], (upper[first], lower[first])), shape=(len(starts),) * 2)
        _, part = connected_components(graph, directed=False)
        names, part = np.unique(part[kept], return_inverse=True)
        n = len(names)
        weight = lengths[kept]
        sums = np.add.reduceat(score.ravel(), starts, dtype=np.float64)[kept]
        place = (row[kept] + top, col[kept])
        ground = weight * areas.at(place[0], place[1] + (weight - 1) / 2)
        table = np.empty((n, 8))
        table[:, 1], table[:, 2], table[:, 3] = (np.bincount(part, w, n) for w in (weight, ground, sums))
        table[part, 0] = value[kept]
        table[:, 4:6], table[:, 6:] = np.inf, -np.inf
        np.minimum.at(table[:, 4], part, place[1])
        np.minimum.at(table[:, 5], part, place[0])
        np.maximum.at(table[:, 6], part, place[1] + weight)
        np.maximum.at(table[:, 7], part, place[0] + 1)
        self.columns.append(table)
        number = np.zeros(len(starts), np.int32)
        number[kept] = part + 1 + self.count
        pieces = number[run_of]
        if self.last is not None:
            touch = (self.last[0] == labels[0]) & (pieces[0] > 0)
            self.edges.append(np.unique(np.stack([self.last[1][touch], pieces[0][touch]], 1), axis=0))
        self.last, self.count = (labels[-1].copy(), pieces[-1].copy()), self.count + n
        return pieces

    def join(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,8) table of the regions, and for each piece, from 0 for none, the number of its region from 1."""
        table = np.concatenate([np.empty((0, 8)), *self.columns])
        edges = np.concatenate([np.empty((0, 2), np.int64), *self.edges]) - 1
        graph = coo_array((np.ones(len(edges), bool), edges.T), shape=(self.count,) * 2)
        n, region = connected_components(graph, directed=False) if self.count else (0, np.empty(0, np.int64))
        joined = np.empty((n, 8))
        joined[region, 0] = table[:, 0]
        for column in (1, 2, 3):
            joined[:, column] = np.bincount(region, table[:, column], n)
        joined[:, 4:6], joined[:, 6:] = np.inf, -np.inf
        for column, reduce in ((4, np.minimum), (5, np.minimum), (6, np.maximum), (7, np.maximum)):
            reduce.at(joined[:, column], region, table[:, column])
        return joined, np.concatenate([[0], region + 1]).astype(np.int32)


def find_regions(
    read: Callable[[str, range], np.ndarray],
    bands: Iterable[range],
    size: tuple[int, int],
    wanted: np.ndarray,
    areas: PixelAreas,
    path: Path,
    min_area: float = 0.0,
) -> Regions:
    """Find the regions and write the region of each pixel to `path`.

    Args:
        read: ("labels" or "score", rows) -> (rows,W), ids and stored scores (see `work`). bands: of rows, in order.
        wanted: bool, by id: which classes have regions. min_area: smaller ones are left out; square metres, or pixels
            where the ground is not known.

    Raises:
        ValueError: more pieces than memory is meant for.
    """
    bands, pieces = list(bands), _Pieces()
    options = {"driver": "GTiff", "dtype": "int32", "count": 1, "tiled": True, "blockxsize": 512, "blockysize": 512}
    grid = {"height": size[0], "width": size[1], "BIGTIFF": "IF_SAFER"}
    with rasterio.open(path, "w", **options, **grid) as file:
        for rows in bands:
            found = pieces.add(read("labels", rows), read("score", rows), wanted, rows.start, areas)
            if pieces.count > MOST_PIECES:
                raise ValueError(
                    f"the label map falls into more than {MOST_PIECES:,} regions, which do not fit the memory meant for"
                    " them: ask for fewer names, a --threshold or a smaller --aoi, or save no vectors"
                )
            file.write(found, 1, window=Window(0, rows.start, size[1], len(rows)))
    table, region = pieces.join()
    kept = table[:, 2] >= min_area
    number = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)
    with rasterio.open(path, "r+") as file:
        for rows in bands:
            window = Window(0, rows.start, size[1], len(rows))
            file.write(number[region[file.read(1, window=window)]], 1, window=window)
    table = table[kept]
    score = table[:, 3] / np.maximum(table[:, 1], 1) / SCORE_STEPS
    return Regions(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2], score, table[:, 4:].astype(int), path)
