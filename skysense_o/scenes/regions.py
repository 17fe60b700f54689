"""Find the connected regions of each class in a label map of any size, band by band.

Two pixels of one class are connected where they share a side (4-connectivity). A band is a range of rows. The part of a
region within one band is called a piece. Memory: 4 bytes per pixel of a band, and about 100 bytes per piece;
MAX_PIECES limits the number of pieces.
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
from skysense_o.whole_files import full_disk_told

MAX_PIECES = 10_000_000
"""Largest number of pieces; this many pieces take about 1 GB."""


def runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run-length encode an array, row by row.

    Args:
        labels: (H,W).

    Returns:
        Index of the first pixel of each run in the flattened array, and the length of each run. No run continues in
        the next row.

    >>> starts, lengths = runs(np.array([[1, 1, 2], [2, 2, 2]]))
    >>> starts.tolist(), lengths.tolist()
    ([0, 2, 3], [2, 1, 3])
    """
    flat, width = labels.ravel(), labels.shape[1]
    change = np.ones(len(flat), bool)
    np.not_equal(flat[1:], flat[:-1], out=change[1:])
    change[::width] = True
    starts = np.flatnonzero(change)
    return starts, np.diff(starts, append=len(flat))


@dataclass
class Regions:
    """N regions, numbered from 1 in the order of their first pixels; all arrays have N entries."""

    label: np.ndarray  # class id
    pixels: np.ndarray
    area: np.ndarray  # square metres, or pixels where the location on the ground is unknown
    score: np.ndarray  # mean probability, 0..1
    boxes: np.ndarray  # (N,4) half-open XYXY, in pixels
    path: Path  # GeoTIFF, int32: number of the region per pixel, 0 for no region

    def __len__(self) -> int:
        return len(self.label)


class _Pieces:
    """The pieces found so far: class, pixels, area, sum of scores and box of each, and the pairs of pieces that touch
    across the border of two bands.
    """

    def __init__(self) -> None:
        self.columns: list[np.ndarray] = []
        self.edges: list[np.ndarray] = []
        self.count = 0
        # Labels and piece numbers of the bottom row of the previous band.
        self.last: tuple[np.ndarray, np.ndarray] | None = None

    def add(
        self, labels: np.ndarray, score: np.ndarray, has_regions: np.ndarray, top: int, areas: PixelAreas
    ) -> np.ndarray:
        """Find the pieces of the next band.

        Args:
            labels, score: (rows,W).
            has_regions: bool per class id, whether its regions are wanted.
            top: the first row of the band.

        Returns:
            int32 (rows,W), number of the piece per pixel, from 1; 0 for classes without regions.
        """
        width = labels.shape[1]
        starts, lengths = runs(labels)
        value, row, col = labels.ravel()[starts], starts // width, starts % width
        used = has_regions[value]
        run_of = np.repeat(np.arange(len(starts), dtype=np.int32), lengths).reshape(labels.shape)
        below = (labels[1:] == labels[:-1]) & has_regions[labels[1:]]
        upper, lower = run_of[:-1][below], run_of[1:][below]
        first = np.ones(len(upper), bool)
        first[1:] = (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])
        graph = coo_array((first[first], (upper[first], lower[first])), shape=(len(starts),) * 2)
        _, part = connected_components(graph, directed=False)
        numbers, part = np.unique(part[used], return_inverse=True)
        n = len(numbers)
        weight = lengths[used]
        sums = np.add.reduceat(score.ravel(), starts, dtype=np.float64)[used]
        y, x = row[used] + top, col[used]
        area = weight * areas.at(y, x + (weight - 1) / 2)
        table = np.empty((n, 8))  # class, pixels, area, sum of scores, box
        table[:, 1], table[:, 2], table[:, 3] = (np.bincount(part, w, n) for w in (weight, area, sums))
        table[part, 0] = value[used]
        table[:, 4:6], table[:, 6:] = np.inf, -np.inf
        np.minimum.at(table[:, 4], part, x)
        np.minimum.at(table[:, 5], part, y)
        np.maximum.at(table[:, 6], part, x + weight)
        np.maximum.at(table[:, 7], part, y + 1)
        self.columns.append(table)
        number = np.zeros(len(starts), np.int32)
        number[used] = part + 1 + self.count
        pieces = number[run_of]
        if self.last is not None:
            touch = (self.last[0] == labels[0]) & (pieces[0] > 0)
            self.edges.append(np.unique(np.stack([self.last[1][touch], pieces[0][touch]], 1), axis=0))
        self.last, self.count = (labels[-1].copy(), pieces[-1].copy()), self.count + n
        return pieces

    def join(self) -> tuple[np.ndarray, np.ndarray]:
        """Join pieces that touch into regions.

        Returns:
            Table (N,8) of the regions, and the number of the region per piece. Numbers of regions and pieces start at
            1; 0 means none.
        """
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
    has_regions: np.ndarray,
    areas: PixelAreas,
    path: Path,
    min_area: float = 0.0,
) -> Regions:
    """Find all regions, and write the number of the region per pixel to a GeoTIFF.

    Args:
        read: ("labels" or "score", rows) -> array (rows,W), see `LabelStore.read`.
        bands: ranges of rows, from top to bottom.
        size: (H,W) of the label map.
        has_regions: bool per id: whether regions of this class are returned.
        areas: the area of each pixel.
        path: the GeoTIFF.
        min_area: smaller regions are left out; square metres, or pixels where the location on the ground is unknown.

    Raises:
        ValueError: there are more than MAX_PIECES pieces.
    """
    bands, pieces = list(bands), _Pieces()
    options = {"driver": "GTiff", "dtype": "int32", "count": 1, "tiled": True, "blockxsize": 512, "blockysize": 512}
    grid = {"height": size[0], "width": size[1], "BIGTIFF": "IF_SAFER"}
    with full_disk_told(path), rasterio.open(path, "w", **options, **grid) as file:
        for rows in bands:
            numbers = pieces.add(read("labels", rows), read("score", rows), has_regions, rows.start, areas)
            if pieces.count > MAX_PIECES:
                raise ValueError(
                    f"the label map has more than {MAX_PIECES:,} regions, too many for memory: give fewer classes, a"
                    " --threshold or a smaller --aoi, or save none of gpkg, geojson, coco and boxes"
                )
            file.write(numbers, 1, window=Window(0, rows.start, size[1], len(rows)))
    table, region = pieces.join()
    large = table[:, 2] >= min_area
    number = np.concatenate([[0], np.where(large, np.cumsum(large), 0)]).astype(np.int32)
    with full_disk_told(path), rasterio.open(path, "r+") as file:
        for rows in bands:
            window = Window(0, rows.start, size[1], len(rows))
            file.write(number[region[file.read(1, window=window)]], 1, window=window)
    table = table[large]
    score = table[:, 3] / np.maximum(table[:, 1], 1) / SCORE_STEPS
    return Regions(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2], score, table[:, 4:].astype(int), path)
