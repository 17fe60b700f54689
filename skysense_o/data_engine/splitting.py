"""Split tiles into train and val without leakage: tiles of the same area stay in the same split.

Shape letters: N tiles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

LONGITUDE_LATITUDE = 4326


def split(rows: Sequence[dict], share: float, seed: int, group: str = "") -> dict[str, str]:
    """Assign each tile to "train" or "val".

    The following stay together: tiles of one source image; georeferenced sources whose footprints touch; sources with
    the same match of `group`. Groups that stay together are drawn at random for val until val has its share.

    Args:
        rows: catalogue rows.
        share: share of the tiles for val, 0..1.
        seed: seed of the draw.
        group: regular expression on file names; sources with the same match (of its first group in parentheses, else
            of the whole expression) stay together.

    Returns:
        tile -> "train" or "val".

    Raises:
        ValueError: `share` is out of range, or `group` is not a valid regular expression.
    """
    if not 0 <= share < 1:
        raise ValueError(f"--val {share} is out of range: at least 0 and below 1")
    groups: dict[int, list[str]] = {}
    for row, index in zip(rows, group_numbers(rows, group)):
        groups.setdefault(index, []).append(row["tile"])
    order = sorted(groups.values(), key=min)
    np.random.default_rng(seed).shuffle(order)
    target, val = share * len(rows), []
    for tiles in order if len(order) > 1 else ():
        if len(val) + len(tiles) <= target:
            val += tiles
    if target and not val and len(order) > 1:  # every group has more tiles than val should have: take the smallest
        val = min(order, key=len)
    chosen = set(val)
    return {row["tile"]: "val" if row["tile"] in chosen else "train" for row in rows}


def group_numbers(rows: Sequence[dict], group: str = "") -> list[int]:
    """The index of each row's group, N integers; see `split`."""
    try:
        pattern = re.compile(group) if group else None
    except re.error as error:
        raise ValueError(f"--group {group!r} is not a regular expression: {error}") from error
    keys: dict[str, int] = {}
    boxes: dict[int, list[float]] = {}
    numbers = []
    for row in rows:
        match = pattern.search(row["source"]) if pattern else None
        key = f"group {match.group(1) if match.groups() else match.group()}" if match else f"source {row['source']}"
        number = keys.setdefault(key, len(keys))
        numbers.append(number)
        if row["crs"] and row["transform"]:
            box = footprint(row)
            old = boxes.get(number, box)
            boxes[number] = [*map(min, old[:2], box[:2]), *map(max, old[2:], box[2:])]
    joined = _touching(boxes, len(keys))
    return [joined[number] for number in numbers]


def footprint(row: dict) -> list[float]:
    """The bounding box of a georeferenced tile: west, south, east, north in degrees (WGS 84)."""
    from rasterio.crs import CRS
    from rasterio.transform import Affine
    from rasterio.warp import transform_bounds

    transform = Affine(*row["transform"])
    corners = [transform @ (x, y) for x in (0, row["width"]) for y in (0, row["height"])]
    x, y = zip(*corners)
    return list(
        transform_bounds(CRS.from_wkt(row["crs"]), CRS.from_epsg(LONGITUDE_LATITUDE), min(x), min(y), max(x), max(y))
    )


def _touching(boxes: dict[int, list[float]], count: int) -> list[int]:
    """Join groups whose boxes touch, and return the index of the joined group for each group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ids, pairs = np.array(list(boxes), int), [(k, k) for k in range(count)]
    edges = np.array(list(boxes.values())).reshape(-1, 4)
    for i, (west, south, east, north) in zip(ids, edges):
        near = (edges[:, 0] <= east) & (edges[:, 2] >= west) & (edges[:, 1] <= north) & (edges[:, 3] >= south)
        pairs += [(i, other) for other in ids[near]]
    graph = coo_array((np.ones(len(pairs)), np.array(pairs).T), shape=(count, count))
    return connected_components(graph, directed=False)[1].tolist()
