"""Check a scene before a model is loaded. Imports GDAL, but not torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skysense_o.image_io import gdal_settings
from skysense_o.scenes.options import SceneOptions, SceneOutputs
from skysense_o.scenes.pixel_area import GROUND_UNKNOWN
from skysense_o.scenes.raster import Raster


def check_formats(formats: Sequence[str], raster: Raster) -> None:
    """Refuse formats that cannot be written for this raster.

    Raises:
        ValueError: GeoJSON, for a raster whose location on the ground is unknown.
    """
    if "geojson" in formats and not raster.areas.known:
        raise ValueError(f"{raster.name}: {GROUND_UNKNOWN}, and GeoJSON needs longitudes: save gpkg or coco instead")


def check_scene(path: Path, outputs: SceneOutputs, options: SceneOptions) -> None:
    """Check a scene and its options.

    Raises:
        ValueError, FileNotFoundError, ImageError: see `Raster` and `check_formats`.
    """
    remote = options.remote
    with gdal_settings(remote), Raster(path, options.bands, options.gsd, options.aoi, remote) as raster:
        check_formats(outputs.formats, raster)
