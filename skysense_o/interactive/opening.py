"""Images from people one does not know: measured before they are read, and told about without a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from skysense_o.errors import USER_ERRORS, message
from skysense_o.inference.images import ImageError, read_image
from skysense_o.scenes.georeference import is_georeferenced, scene_tools

MOST_PIXELS = 4_000_000
"""The mini model takes about 4 s and 2 GiB for so many on two cores."""


@dataclass(frozen=True)
class OpenedImage:
    """What people see and the model is shown: rgb uint8 (H,W,3). name: of the file, without its folder.

    scene: the file itself where it has a place on the ground. valid: bool (H,W), or None where all pixels are.
    """

    rgb: np.ndarray
    name: str
    scene: Path | None = None
    valid: np.ndarray | None = None

    @property
    def stem(self) -> str:
        return Path(self.name).stem


def open_upload(path: str | Path, most_pixels: int | None = MOST_PIXELS) -> OpenedImage:
    """Read an image, or a GeoTIFF with its place where the extra "geo" is installed. most_pixels: None for any.

    Raises:
        ImageError: more pixels than allowed (found without reading them), or nothing that can be read; the text
            holds the file's name and no folder.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        scene = is_georeferenced(path) and _has_scene_tools()
        _refuse_large(path, _size_of(path), most_pixels)
        return _open_scene(path) if scene else OpenedImage(read_image(path), path.name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no image at {path.name!r}") from error
    except USER_ERRORS as error:
        text = message(error).replace(str(path), path.name)
        raise ImageError(text.replace(str(path.parent), "")) from error


def _size_of(path: Path) -> tuple[int, int] | None:
    """(H,W) as the file's head tells, or None where that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size[::-1]
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has too many pixels ({error})") from error
    except (UnidentifiedImageError, OSError, SyntaxError):
        if not (path.is_file() and path.stat().st_size and _has_scene_tools()):
            return None
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path) as file:
            return file.shape
    except RasterioError:
        return None


def _refuse_large(path: Path, size: tuple[int, int] | None, most: int | None) -> None:
    if size is None:  # read_image would ask OpenCV, which reads first and counts later
        if not path.is_file() or not path.stat().st_size:
            read_image(path)  # has the better words
        raise ImageError(f"{path.name} is not an image that can be read: use JPEG, PNG or TIFF")
    if most is not None and size[0] * size[1] > most:
        raise ImageError(
            f"{path.name} has {size[1]:,} x {size[0]:,} pixels and {most:,} in all are allowed here: cut it, make it"
            " smaller, or use demo/demo.py, which takes any size"
        )


def _has_scene_tools() -> bool:
    try:
        scene_tools()
    except ModuleNotFoundError:
        return False
    return True


def _open_scene(path: Path) -> OpenedImage:
    from skysense_o.scenes.raster import Raster
    from skysense_o.scenes.scene import gdal

    with gdal(), Raster(path) as raster:
        rows, cols = (range(n) for n in raster.size)
        valid = None if raster.all_valid else raster.valid(rows, cols)
        rgb = raster.pixels(rows, cols, (255, 255, 255)).transpose(1, 2, 0)
        return OpenedImage(np.ascontiguousarray(rgb), path.name, path, valid)
