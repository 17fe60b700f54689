"""Write the result of a scene: GeoTIFFs, polygons, COCO, tables, an overlay.

A file gets its final name only when it is complete.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.inference.colors import Color
from skysense_o.inference.drawing import overlay
from skysense_o.inference.export import draw_legend, palette_of, write_png
from skysense_o.scenes.coco import coco_boxes, coco_dataset
from skysense_o.scenes.geojson import write_geojson
from skysense_o.scenes.geotiff import describe_labels, describe_score, write_geotiff
from skysense_o.scenes.instances import instance_regions
from skysense_o.scenes.label_store import NO_SCORE
from skysense_o.scenes.options import SceneOutputs
from skysense_o.scenes.polygons import polygons, write_geopackage
from skysense_o.scenes.regions import Regions, find_regions, runs
from skysense_o.scenes.scene import Scene, tags_of
from skysense_o.scenes.stac import write_item
from skysense_o.whole_files import write_text

REGION_FORMATS = {"gpkg", "geojson", "coco", "boxes"}
"""Formats with one feature per region of the label map, or per object where the model finds objects."""
OVERLAY_SIDE = 2048
"""Longest side of the overlay, in pixels."""


def save_scene(scene: Scene, outputs: SceneOutputs) -> tuple[list[Path], list[dict]]:
    """Write the files of a segmented scene.

    Returns:
        The paths, and the rows of `class_areas`.
    """
    stem, formats = outputs.stem or scene.raster.path.stem, outputs.formats
    start = outputs.folder / stem
    rows, written = class_areas(scene), []
    palette = palette_of(scene.classes, outputs.colors, [row["share"] for row in rows], scene.has_none)
    work, source, tags = scene.work, scene.raster.file, tags_of(scene)
    if {"geotiff", "labels"} & set(formats):
        written.append(_path(start, "_labels.tif"))
        describe = describe_labels(scene.classes, palette, work.nodata, tags)
        write_geotiff(
            written[-1], source, work.dtype, work.nodata, work.bands(), partial(work.read, "labels"), describe
        )
    if "confidence" in formats:
        written.append(_path(start, "_confidence.tif"))
        read = partial(work.read, "score")
        write_geotiff(written[-1], source, np.dtype("u1"), NO_SCORE, work.bands(), read, describe_score(tags))
    written += _save_regions(scene, outputs, start, palette)
    if "areas" in formats:
        written.append(_path(start, "_areas.csv"))
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(written[-1], text.getvalue())
    if "overlay" in formats:
        written.append(_path(start, "_overlay.png"))
        write_png(written[-1], _overlay(scene, palette, rows, outputs.min_share))
    if "json" in formats:
        written.append(_path(start, ".json"))
        classes = [{**row, "color": color} for row, color in zip(rows, palette)]
        classes = sorted(classes, key=lambda row: -row["share"]) if outputs.min_share else classes
        write_text(written[-1], json.dumps({"classes": classes, "settings": scene.settings}, indent=1))
    if "stac" in formats:
        path = _path(start, "_item.json")
        write_item(path, scene.raster, {_key(file, stem): file for file in written}, rows, outputs.item)
        written.append(path)
    return written, rows


def class_areas(scene: Scene) -> list[dict]:
    """Measure the area of each class.

    Returns:
        One row per class: id, name, pixels, share of the valid pixels, area_m2 (None where the location on the ground
        is unknown).
    """
    ids, work, areas = len(scene.classes), scene.work, scene.raster.areas
    pixels, square_metres = np.zeros(ids, np.int64), np.zeros(ids)
    for rows in work.bands():
        labels = work.read("labels", rows)
        starts, lengths = runs(labels)
        label, row, col = labels.ravel()[starts], starts // labels.shape[1] + rows.start, starts % labels.shape[1]
        has_data = label != work.nodata
        label, lengths = label[has_data].astype(int), lengths[has_data]
        pixels += np.bincount(label, lengths, ids).astype(np.int64)
        middle = col[has_data] + (lengths - 1) / 2
        square_metres += np.bincount(label, lengths * areas.at(row[has_data], middle), ids)
    total = max(1, int(pixels.sum()))
    return [
        {
            "id": i,
            "name": name,
            "pixels": int(n),
            "share": float(n / total),
            "area_m2": float(area) if areas.known else None,
        }
        for i, (name, n, area) in enumerate(zip(scene.classes, pixels, square_metres))
    ]


def _save_regions(scene: Scene, outputs: SceneOutputs, start: Path, palette: Sequence[Color]) -> list[Path]:
    """Find the regions of all classes but "none", and write polygons and boxes."""
    formats = set(outputs.formats)
    if not REGION_FORMATS & formats:
        return []
    work, raster, classes = scene.work, scene.raster, scene.classes
    has_regions = np.zeros(np.iinfo(work.dtype).max + 1, bool)
    first = int(scene.has_none)
    has_regions[first : len(classes)] = True
    path = work.folder / "regions.tif"
    if scene.instances is None:
        regions: Regions = find_regions(
            work.read, work.bands(), work.size, has_regions, raster.areas, path, outputs.min_area
        )
    else:
        regions = instance_regions(work.folder, work, raster, scene.instances, path, outputs.min_area)
    written = []
    if {"gpkg", "geojson"} & formats:
        file, known = raster.file, raster.areas.known
        table = polygons(regions, classes, file.transform, file.crs, raster.path.name, outputs.simplify, ground=known)
        if "gpkg" in formats:
            written.append(_path(start, ".gpkg"))
            write_geopackage(table, written[-1], classes, palette)
        if "geojson" in formats:
            written.append(_path(start, ".geojson"))
            write_geojson(table, written[-1], raster.areas.gsd)
    if "coco" in formats:
        written.append(_path(start, "_coco.json"))
        write_text(written[-1], json.dumps(coco_dataset(regions, work.size, classes, first, raster.path.name)))
    if "boxes" in formats:
        written.append(_path(start, "_boxes.json"))
        write_text(written[-1], json.dumps(coco_boxes(regions)))
    return written


def _overlay(scene: Scene, palette: Sequence[Color], rows: Sequence[dict], min_share: float) -> Image.Image:
    """The scene with its labels, reduced to OVERLAY_SIDE; pixels without data are white."""
    height, width = scene.raster.size
    factor = min(1.0, OVERLAY_SIDE / max(height, width))
    shape = max(1, round(height * factor)), max(1, round(width * factor))
    sampled = (np.arange(shape[0]) + 0.5) * height / shape[0], (np.arange(shape[1]) + 0.5) * width / shape[1]
    ys, xs = (p.astype(int) for p in sampled)
    labels = np.stack([scene.work.read("labels", range(y, y + 1))[0, xs] for y in ys])
    image = scene.raster.thumbnail(shape).transpose(1, 2, 0)
    colors = np.full((scene.work.nodata + 1, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    rows = [{**row, "color": color} for row, color in zip(rows, palette)]
    return draw_legend(overlay(image, labels, colors), rows, min_share)


def _key(file: Path, stem: str) -> str:
    """The key of a file among the assets of an item: `town_labels.tif` gives labels, `town.gpkg` gives gpkg."""
    return file.name.removeprefix(stem).lstrip("_.").split(".")[0]


def _path(start: Path, end: str) -> Path:
    """Return the path `<folder>/<stem><end>` of an output file; the stem may contain dots."""
    return start.with_name(start.name + end)
