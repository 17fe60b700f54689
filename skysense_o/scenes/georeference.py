"""The half of the package that needs GDAL, and what only it can write."""

from __future__ import annotations

from types import ModuleType

SCENE_FORMATS = ("geotiff", "confidence", "gpkg", "geojson", "coco", "boxes", "areas")
"""What is written of scenes only; see `scene_export.FORMATS`."""


def scene_tools() -> ModuleType:
    """`scene_export`, which needs the extra "geo".

    Raises:
        ModuleNotFoundError: it is not installed; says how to.
    """
    try:
        from skysense_o.scenes import export as scene_export
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("skysense_o"):
            raise
        raise ModuleNotFoundError(
            f'georeferenced scenes need {error.name}, which is not installed: pip install -e ".[geo]"', name=error.name
        ) from error
    return scene_export
