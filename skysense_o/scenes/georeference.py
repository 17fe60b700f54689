"""Which files have a place on the ground, told without GDAL; and the half of the package that needs GDAL."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from PIL import Image

SCENE_FORMATS = ("geotiff", "confidence", "gpkg", "geojson", "coco", "boxes", "areas")
"""What is written of scenes only; see `scene_export.FORMATS`."""
_TIFF_TAGS = (33550, 33922, 34264, 34735, 50844)  # scale, tie points, transformation, keys, RPCs
_WORLD = {
    ".tif": (".tfw", ".tifw"), ".tiff": (".tfw", ".tiffw"), ".png": (".pgw", ".pngw"), ".jpg": (".jgw", ".jpgw"),
    ".jpeg": (".jgw", ".jpegw"),
}  # fmt: skip


def is_georeferenced(path: Path) -> bool:
    """A GeoTIFF, or an image with a world file beside it. What cannot be read is not."""
    worlds = [path.with_suffix(end) for end in (*_WORLD.get(path.suffix.lower(), ()), ".wld")]
    if path.is_file() and any(world.is_file() for world in worlds):
        return True
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with Image.open(path) as image:
            return any(tag in image.tag_v2 for tag in _TIFF_TAGS)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return path.is_file() and _is_big_tiff(path)  # Pillow reads neither every kind of TIFF nor every size


def _is_big_tiff(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


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
