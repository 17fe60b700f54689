"""Check a scene before a model is loaded. Imports GDAL, but not torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skysense_o.image_io import gdal_settings
from skysense_o.scenes.options import SceneOptions, SceneOutputs
from skysense_o.scenes.pixel_area import GROUND_UNKNOWN
from skysense_o.scenes.raster import Raster
from skysense_o.scenes.stac import check_stac


def check_formats(formats: Sequence[str], raster: Raster) -> None:
    """Refuse formats that cannot be written for this raster.

    Raises:
        ValueError: GeoJSON or STAC, for a raster whose location on the ground is unknown.
        ModuleNotFoundError: STAC, and pystac is not installed.
    """
    for name, title in (("geojson", "GeoJSON"), ("stac", "STAC")):
        if name in formats and not raster.areas.known:
            raise ValueError(
                f"{raster.name}: {GROUND_UNKNOWN}, and {title} needs longitudes: save gpkg or coco instead"
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
