"""Write what was found in a scene: GeoTIFFs, vectors, COCO, tables, an overlay. Each file appears only when whole."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from skysense_o.image_io import gdal_settings
from skysense_o.inference.drawing import Color, overlay, with_legend
from skysense_o.inference.export import palette_of, write_png
from skysense_o.inference.predictor import Predictor
from skysense_o.run_lock import run_lock
from skysense_o.scenes.coco import coco_boxes, coco_dataset
from skysense_o.scenes.geojson import write_geojson
from skysense_o.scenes.geotiff import describe_labels, describe_score, write_geotiff
from skysense_o.scenes.label_store import NO_SCORE
from skysense_o.scenes.pixel_area import GROUND_UNKNOWN
from skysense_o.scenes.polygons import polygons, write_geopackage
from skysense_o.scenes.raster import Raster
from skysense_o.scenes.regions import Regions, find_regions, runs
from skysense_o.scenes.scene import Scene, SceneOptions, record, segment_scene
from skysense_o.vocabulary import Vocabulary
from skysense_o.whole_files import write_text

if TYPE_CHECKING:
    from accelerate import PartialState

FORMATS = ("geotiff", "labels", "confidence", "gpkg", "geojson", "coco", "boxes", "areas", "overlay", "json")
"""`labels` is another word for `geotiff`."""
OVERLAY_SIDE = 2048


def check_names(formats: Sequence[str]) -> None:
    """Raise a ValueError for a format that scenes do not have."""
    wrong = [name for name in formats if name not in FORMATS]
    if wrong:
        raise ValueError(f"--save {','.join(wrong)} is not for georeferenced scenes: use {', '.join(FORMATS)}")


def check_formats(formats: Sequence[str], raster: Raster) -> None:
    """Raise a ValueError, before any work, for what would only fail at its end: GeoJSON of a scene without a place."""
    check_names(formats)
    if "geojson" in formats and not raster.areas.known:
        raise ValueError(f"{raster.name}: {GROUND_UNKNOWN}, and GeoJSON needs longitudes: save gpkg or coco instead")


def check_scene(path: Path, formats: Sequence[str], options: SceneOptions) -> None:
    """Raise what is wrong with a scene and its options, before a model is loaded; see `Raster` and `check_formats`."""
    remote = options.remote
    with gdal_settings(remote), Raster(path, options.bands, options.gsd, options.aoi, remote) as raster:
        check_formats(formats, raster)


def save_scene(
    scene: Scene,
    folder: Path,
    stem: str,
    formats: Sequence[str],
    colors: Sequence[Color] | None = None,
    min_area: float = 0.0,
    simplify: float = 0.0,
) -> tuple[list[Path], list[dict]]:
    """Write the formats into `folder` as `<stem>_...`.

    Args:
        min_area: of regions, square metres (pixels where the ground is not known). simplify: see `polygons`.

    Returns:
        the paths in order, and one row a class: id, name, pixels, share of the valid pixels, area_m2 or None.
    """
    palette, rows, written = palette_of(scene.classes, colors, scene.has_none), class_areas(scene), []
    work, source, tags = scene.work, scene.raster.file, record(scene)
    if {"geotiff", "labels"} & set(formats):
        written.append(folder / f"{stem}_labels.tif")
        describe = describe_labels(scene.classes, palette, work.nodata, tags)
        write_geotiff(
            written[-1], source, work.dtype, work.nodata, work.bands(), partial(work.read, "labels"), describe
        )
    if "confidence" in formats:
        written.append(folder / f"{stem}_confidence.tif")
        read = partial(work.read, "score")
        write_geotiff(written[-1], source, np.dtype("u1"), NO_SCORE, work.bands(), read, describe_score(tags))
    written += _save_regions(scene, folder, stem, formats, palette, min_area, simplify)
    if "areas" in formats:
        written.append(folder / f"{stem}_areas.csv")
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(written[-1], text.getvalue())
    if "overlay" in formats:
        written.append(folder / f"{stem}_overlay.png")
        write_png(written[-1], _overlay(scene, palette, rows))
    if "json" in formats:
        written.append(folder / f"{stem}.json")
        classes = [{**row, "color": list(color)} for row, color in zip(rows, palette)]
        write_text(written[-1], json.dumps({"classes": classes, "settings": scene.settings}, indent=1))
    return written, rows


def class_areas(scene: Scene) -> list[dict]:
    """One row a class: id, name, pixels, share of the valid pixels, area_m2 (None where the ground is not known)."""
    ids, work, areas = len(scene.classes), scene.work, scene.raster.areas
    pixels, ground = np.zeros(ids, np.int64), np.zeros(ids)
    for rows in work.bands():
        labels = work.read("labels", rows)
        starts, lengths = runs(labels)
        value, row, col = labels.ravel()[starts], starts // labels.shape[1] + rows.start, starts % labels.shape[1]
        some = value != work.nodata
        value, lengths = value[some].astype(int), lengths[some]
        pixels += np.bincount(value, lengths, ids).astype(np.int64)
        ground += np.bincount(value, lengths * areas.at(row[some], col[some] + (lengths - 1) / 2), ids)
    total = max(1, int(pixels.sum()))
    return [
        {
            "id": i,
            "name": name,
            "pixels": int(n),
            "share": float(n / total),
            "area_m2": float(a) if areas.known else None,
        }
        for i, (name, n, a) in enumerate(zip(scene.classes, pixels, ground))
    ]


def _save_regions(
    scene: Scene,
    folder: Path,
    stem: str,
    formats: Sequence[str],
    palette: Sequence[Color],
    min_area: float,
    simplify: float,
) -> list[Path]:
    if not {"gpkg", "geojson", "coco", "boxes"} & set(formats):
        return []
    work, raster, classes = scene.work, scene.raster, scene.classes
    wanted = np.zeros(np.iinfo(work.dtype).max + 1, bool)
    first = int(scene.has_none)
    wanted[first : len(classes)] = True
    path = work.folder / "regions.tif"
    regions: Regions = find_regions(work.read, work.bands(), work.size, wanted, raster.areas, path, min_area)
    written = []
    if {"gpkg", "geojson"} & set(formats):
        file, known = raster.file, raster.areas.known
        table = polygons(regions, classes, file.transform, file.crs, raster.path.name, simplify, ground=known)
        if "gpkg" in formats:
            written.append(folder / f"{stem}.gpkg")
            write_geopackage(table, written[-1], classes, palette)
        if "geojson" in formats:
            written.append(folder / f"{stem}.geojson")
            write_geojson(table, written[-1], raster.areas.gsd)
    if "coco" in formats:
        written.append(folder / f"{stem}_coco.json")
        write_text(written[-1], json.dumps(coco_dataset(regions, work.size, classes, first, raster.path.name)))
    if "boxes" in formats:
        written.append(folder / f"{stem}_boxes.json")
        write_text(written[-1], json.dumps(coco_boxes(regions)))
    return written


def _overlay(scene: Scene, palette: Sequence[Color], rows: Sequence[dict]) -> Image.Image:
    """The scene and its labels, reduced to OVERLAY_SIDE; what is not valid is white."""
    height, width = scene.raster.size
    factor = min(1.0, OVERLAY_SIDE / max(height, width))
    shape = max(1, round(height * factor)), max(1, round(width * factor))
    picked = (np.arange(shape[0]) + 0.5) * height / shape[0], (np.arange(shape[1]) + 0.5) * width / shape[1]
    ys, xs = (p.astype(int) for p in picked)
    labels = np.stack([scene.work.read("labels", range(y, y + 1))[0, xs] for y in ys])
    image = scene.raster.thumbnail(shape).transpose(1, 2, 0)
    colors = np.full((scene.work.nodata + 1, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    return with_legend(overlay(image, labels, colors), scene.classes, palette, [row["share"] for row in rows])


def run_scene(
    predictor: Predictor,
    path: Path,
    vocabulary: Vocabulary,
    folder: Path,
    stem: str,
    formats: Sequence[str],
    options: SceneOptions,
    *,
    colors: Sequence[Color] | None = None,
    min_area: float = 0.0,
    simplify: float = 0.0,
    restart: bool = False,
    processes: PartialState | None = None,
    progress: bool = True,
) -> tuple[list[Path], list[dict]]:
    """From a raster to files: `segment_scene`, then `save_scene`, whose result comes back (on the first process).

    An interrupted run leaves `<stem>.work` in `folder` and goes on from there when called again; `restart` throws that
    away. processes: of Accelerate, where several share the scene. progress: a bar on stderr.
    """
    share = (processes.process_index, processes.num_processes) if processes else (0, 1)
    with _locked(folder, stem, processes):
        work = folder / f"{stem}.work"
        if restart and share[0] == 0:
            shutil.rmtree(work, ignore_errors=True)
        if restart and processes:
            processes.wait_for_everyone()
        remote = options.remote
        with gdal_settings(remote), Raster(path, options.bands, options.gsd, options.aoi, remote) as raster:
            check_formats(formats, raster)
            scene = segment_scene(
                predictor, raster, vocabulary, work, options, process=share[0], processes=share[1], progress=progress
            )
            with closing(scene.work):
                if processes:
                    processes.wait_for_everyone()
                if share[0]:
                    return [], []
                found = save_scene(scene, folder, stem, formats, colors, min_area, simplify)
                scene.work.remove()
    return found


@contextmanager
def _locked(folder: Path, stem: str, processes: PartialState | None) -> Iterator[None]:
    """Lock a scene's work folder for all processes of a run; the first one holds the lock, and tells the others.

    Raises:
        OSError: another run holds it.
    """
    with ExitStack() as stack:
        problem = ""
        if processes is None or processes.process_index == 0:
            try:
                lock = run_lock(folder / f".{stem}.lock", folder / f"{stem}.work", "give another --output")
                stack.enter_context(lock)
            except OSError as error:
                problem = str(error)
        if processes is not None and processes.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            (problem,) = broadcast_object_list([problem])
        if problem:
            raise OSError(problem)
        yield
