"""Checks of a scene that need no model. Imports GDAL, but not torch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from skysense_o.image_io import gdal_settings
from skysense_o.scenes.options import SceneOptions, SceneOutputs
from skysense_o.scenes.pixel_area import GROUND_UNKNOWN
from skysense_o.scenes.raster import Raster
from skysense_o.scenes.stac import check_stac
from skysense_o.whole_files import check_writable

logger = logging.getLogger(__name__)

FAR_GSD = 2.0
"""Warn where pixels are larger or smaller than those of the training images by more than this factor."""


def check_formats(formats: Sequence[str], raster: Raster) -> None:
    """Refuse formats that cannot be written for this raster.

    Raises:
        ValueError: GeoJSON or STAC is requested for a raster whose location on the ground is unknown.
        ModuleNotFoundError: STAC is requested, and pystac is not installed.
    """
    for name, title in (("geojson", "GeoJSON"), ("stac", "STAC")):
        if name in formats and not raster.areas.known:
            raise ValueError(
                f"{raster.name}: {GROUND_UNKNOWN}, and {title} needs longitudes: leave {name} out, or save gpkg or coco"
            )
    if "stac" in formats:
        check_stac()


def check_scene(path: Path, outputs: SceneOutputs, options: SceneOptions) -> None:
    """Check a scene and its options.

    Raises:
        ValueError, FileNotFoundError, ImageError: see `Raster` and `check_formats`.
    """
    remote = options.remote
    with gdal_settings(remote), Raster(path, options.bands, options.gsd, options.aoi, remote) as raster:
        check_formats(outputs.formats, raster)


def log_scale(raster: Raster, trained: Sequence[float], gsd: float | None) -> None:
    """Log how the raster is converted and its scale; warn where the scale is far from that of the training images."""
    for note in raster.notes:
        logger.info("%s: %s", raster.path.name, note)
    own_gsd, model_gsd = raster.areas.gsd, gsd or raster.areas.gsd
    if own_gsd is None:
        logger.info("%s: %s; areas are given in pixels", raster.path.name, GROUND_UNKNOWN)
        return
    resampled = f", resampled to {model_gsd:g} m for the model" if gsd else ""
    logger.info("%s: %.3g m per pixel%s", raster.path.name, own_gsd, resampled)
    if not trained:
        return
    least, greatest = trained
    if not least / FAR_GSD <= model_gsd <= greatest * FAR_GSD:
        known = f"{least:g}" if least == greatest else f"{least:g} to {greatest:g}"
        # Resampling cannot add the detail that coarse images lack.
        advice = f", or try --gsd {least:g}" if model_gsd < least else ""
        logger.warning(
            "%s: the weights were trained at %s m per pixel: expect poor results%s", raster.path.name, known, advice
        )


def check_free_space(folder: Path, size: tuple[int, int], ids: int) -> None:
    """Check that work files, an uncompressed copy and the result fit on the disk.

    Raises:
        OSError: they do not fit, or the folder cannot be written.
    """
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    need = size[0] * size[1] * (3 + 3 * (1 if ids <= 254 else 2))
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(
            f"{str(folder)!r} has {free / 1e6:,.1f} MB free and this scene needs {need / 1e6:,.1f} MB: make room, or"
            " give another --output"
        )
