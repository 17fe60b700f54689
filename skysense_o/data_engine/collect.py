"""Step 1: cut images and rasters of any size into tiles, and list the tiles with place and licence in a catalogue.

Shape letters: H W pixels of an image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from skysense_o.data_engine.work_folder import Journal, WorkFolder, write_map, write_table
from skysense_o.errors import file_error, is_full_disk
from skysense_o.image_io import (
    FILL,
    WHAT_IS_LOST,
    gdal_settings,
    has_geo,
    is_georeferenced,
    printable,
    read_image,
)  # fmt: skip
from skysense_o.whole_files import write_text

logger = logging.getLogger(__name__)
LEAST_VALID = 0.5
"""Tiles whose share of valid pixels is smaller than this are left out."""


@dataclass
class Cut:
    """A part of an image. row, column: position of its first pixel in the image. pixels: uint8 (H,W,3), or None if
    too few pixels are valid. place: crs (WKT or ""), transform (6 numbers or None) and gsd (metres per pixel or NaN).
    """

    row: int
    column: int
    pixels: np.ndarray | None
    place: dict = field(default_factory=lambda: {"crs": "", "transform": None, "gsd": float("nan")})


@dataclass
class Collected:
    """What `collect` did. sources: number of images that this call read. tiles: number of tiles in the catalogue.
    empty: number of parts that were left out because too few pixels are valid. errors: {"source", "error"} per image.
    """

    sources: int = 0
    tiles: int = 0
    empty: int = 0
    errors: list[dict] = field(default_factory=list)


def collect(
    work: WorkFolder, images: list[Path], *, side: int, licence: str = "", credit: str = "", gsd: float | None = None
) -> Collected:
    """Cut every image and write tiles and catalogue; images that an earlier call finished are skipped.

    An image longer than `side` is cut into equal parts of at most that size. Parts do not overlap, so no pixel occurs
    twice in the set. An image that cannot be read is listed and tried again by the next call.

    Args:
        side: side of a tile, in pixels. licence, credit: licence and credit of these images. gsd: metres per pixel of
            images that are not georeferenced.

    Raises:
        ValueError: `side` is below 16.
    """
    if side < 16:
        raise ValueError(f"--tile {side} is out of range: 16 pixels at least")
    journal, result = Journal(work / "catalog.jsonl"), Collected()
    finished = {line["source"] for line in journal.lines if line.get("finished")}
    cut = {(line["source"], line["row"], line["column"]) for line in journal.lines if "row" in line}
    for path in tqdm(images, unit="image", desc="collect"):
        try:
            key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]  # keeps the path private
            if key in finished:
                continue
            for part in cuts(path, side, gsd, lambda row, column, key=key: (key, row, column) in cut):
                tile = None if part.pixels is None else _write_tile(work, path, part, licence, credit)
                journal.add({"source": key, "row": part.row, "column": part.column, "tile": tile})
        except Exception as error:  # one bad file does not end the batch
            if is_full_disk(error):
                raise
            message = file_error(error, printable(path.name)).replace(printable(path), printable(path.name))
            result.errors.append({"source": printable(path.name), "error": message})
            continue
        journal.add({"source": key, "finished": True})
        finished.add(key)  # `images` may also contain a link to the same file
        result.sources += 1
    journal.close()
    tiles = {line["tile"]["tile"]: line["tile"] for line in journal.lines if line.get("tile")}
    write_table(work / "catalog.parquet", [tiles[name] for name in sorted(tiles)], catalog_schema())
    write_text(work / "catalog_errors.jsonl", "".join(json.dumps(error) + "\n" for error in result.errors))
    result.tiles = len(tiles)
    result.empty = sum("row" in line and line["tile"] is None for line in journal.lines)
    return result


def _write_tile(work: WorkFolder, path: Path, part: Cut, licence: str, credit: str) -> dict:
    height, width = part.pixels.shape[:2]
    digest = hashlib.sha256(f"{part.row},{part.column},".encode() + part.pixels.tobytes()).hexdigest()[:16]
    tile = f"{re.sub(r'[^A-Za-z0-9_-]+', '_', path.stem)[:80]}_{digest}"
    file = f"tiles/{tile}.png"
    write_map(work / file, part.pixels)
    return {
        "tile": tile, "file": file, "source": printable(path.name), "width": width, "height": height, "row": part.row,
        "column": part.column, **part.place, "licence": licence, "credit": credit,
        "sha256": hashlib.sha256((work / file).read_bytes()).hexdigest(),
    }  # fmt: skip


def catalog_schema():
    """Columns of catalog.parquet."""
    import pyarrow as pa

    text = ("tile", "file", "source", "crs", "licence", "credit", "sha256")
    types = {
        **dict.fromkeys(("width", "height", "row", "column"), pa.int32()),
        **dict.fromkeys(text, pa.string()),
        "transform": pa.list_(pa.float64()),
        "gsd": pa.float64(),
    }
    order = "tile file source width height row column crs transform gsd licence credit sha256"
    return pa.schema([(name, types[name]) for name in order.split()])


def spans(length: int, side: int) -> list[range]:
    """Divide 0..length into as few equal parts as possible, none longer than `side`."""
    edges = np.linspace(0, length, -(-length // side) + 1).round().astype(int).tolist()
    return [range(a, b) for a, b in pairwise(edges)]


def cuts(
    path: Path, side: int, gsd: float | None = None, known: Callable[[int, int], bool] = lambda row, column: False
) -> Iterator[Cut]:
    """Yield the parts of an image or raster, except those for which `known(row, column)` is true."""
    if is_georeferenced(path):
        if has_geo():
            yield from _raster_cuts(path, side, known)
            return
        logger.warning("%s: %s", printable(path.name), WHAT_IS_LOST)
    image = read_image(path)
    rgb = image.filled()
    for rows in spans(image.size[0], side):
        for columns in spans(image.size[1], side):
            if not known(rows.start, columns.start):
                here = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
                enough = image.valid is None or image.valid[here].mean() >= LEAST_VALID
                part = Cut(rows.start, columns.start, rgb[here] if enough else None)
                if gsd:
                    part.place["gsd"] = gsd
                yield part


def _raster_cuts(path: Path, side: int, known: Callable[[int, int], bool]) -> Iterator[Cut]:
    from rasterio.transform import Affine

    from skysense_o.scenes.raster import Raster

    with gdal_settings(), Raster(path) as raster:
        crs = raster.file.crs.to_wkt() if raster.file.crs else ""
        metres = raster.areas.gsd if raster.areas.gsd is not None else float("nan")
        for rows in spans(raster.size[0], side):
            for columns in spans(raster.size[1], side):
                if known(rows.start, columns.start):
                    continue
                place = raster.file.transform @ Affine.translation(columns.start, rows.start)
                enough = raster.valid(rows, columns).mean() >= LEAST_VALID
                pixels = np.ascontiguousarray(raster.pixels(rows, columns, FILL).transpose(1, 2, 0)) if enough else None
                where = {"crs": crs, "transform": list(place)[:6] if crs else None, "gsd": metres}
                yield Cut(rows.start, columns.start, pixels, where)
