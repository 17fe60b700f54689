"""Open images from untrusted people: check the size before reading, and report errors without a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.errors import USER_ERRORS, message
from skysense_o.image_io import ImageError, gdal_settings, has_geo, is_georeferenced, printable, read_image
from skysense_o.image_io.files import TooManyPixels

UPLOADS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
"""Suffixes that the page accepts: formats of one file that refers to no other."""


@dataclass(frozen=True)
class OpenedImage:
    """An image as the user sees it.

    Args:
        rgb: uint8 (H,W,3); pixels without data are white.
        name: file name without its folder.
        scene: the file itself if its location on the ground is known.
        valid: bool (H,W), or None if all pixels have data.
        notes: what was done to show the image.
        full: the file of a scene that was scaled down; see `smaller_scene`.
    """

    rgb: np.ndarray
    name: str
    scene: Path | None = None
    valid: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    full: Path | None = None

    @property
    def stem(self) -> str:
        return Path(self.name).stem


def open_upload(
    path: str | Path, max_pixels: int | None = None, read_pixels: int | None = None, alone: bool = True
) -> OpenedImage:
    """Read an image, or a GeoTIFF with its georeference if the extra "geo" is installed.

    Args:
        path: the file.
        max_pixels: a larger image is scaled down to this many pixels; None to keep any size.
        read_pixels: an image with more pixels is refused before it is read; None for no limit.
        alone: whether to refuse formats that refer to other files; see `read_image`.

    Returns:
        The image. A scene that was scaled down has `full` instead of `scene`, and its notes say so.

    Raises:
        ImageError: the image has too many pixels, or cannot be read. The message has the file's name, not its folder.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        image = read_image(path, max_pixels=read_pixels or 0, alone=alone)
        scene = path if has_geo() and is_georeferenced(path) else None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no image at {printable(path.name)!r}") from error
    except TooManyPixels as error:
        height, width = error.size
        raise ImageError(
            f"{printable(path.name)} has {width:,} x {height:,} pixels, more than the {error.limit:,} allowed here: cut"
            " it, make it smaller, or use demo/demo.py, which takes any size"
        ) from error
    except USER_ERRORS as error:
        text = message(error).replace(printable(path), printable(path.name))
        raise ImageError(text.replace(printable(path.parent), "")) from error
    opened = OpenedImage(image.filled((255, 255, 255)), printable(path.name), scene, image.valid, image.record.notes)
    return opened if max_pixels is None else scaled_down(opened, max_pixels)


def scaled_down(image: OpenedImage, max_pixels: int) -> OpenedImage:
    """The image with at most `max_pixels` pixels and its aspect ratio kept; the image itself if it is small enough."""
    height, width = image.rgb.shape[:2]
    if height * width <= max_pixels:
        return image
    factor = (max_pixels / (height * width)) ** 0.5
    size = max(1, int(width * factor)), max(1, int(height * factor))
    if size[0] * size[1] > max_pixels:  # the shorter side was rounded up to 1, so the longer side alone may be too long
        size = min(size[0], max_pixels), min(size[1], max_pixels)
    rgb = np.asarray(Image.fromarray(image.rgb).resize(size, Image.Resampling.BOX))
    valid = image.valid
    if valid is not None:
        valid = np.asarray(Image.fromarray(valid.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
    note = f"scaled down from {width:,} x {height:,} pixels"
    if image.scene is not None:
        note += " for the model; demo/demo.py segments it at full size"
    return OpenedImage(rgb, image.name, None, valid, (*image.notes, note), image.scene)


def smaller_scene(path: Path, size: tuple[int, int], folder: Path) -> Path | None:
    """Write a scene at another size, with its georeference.

    Args:
        path: path of the scene.
        size: (H,W) to resample to.
        folder: folder to write to.

    Returns:
        Path of a GeoTIFF; None where the location on the ground is unknown.
    """
    import rasterio.shutil
    from rasterio.transform import Affine
    from rasterio.vrt import WarpedVRT

    from skysense_o.image_io.gdal_access import open_dataset
    from skysense_o.scenes.pixel_area import ground_known

    target = folder / f"{path.stem}_smaller.tif"
    with gdal_settings(), open_dataset(path) as file:
        if not ground_known(file.crs, file.transform, file.shape):
            return None
        grid = file.transform @ Affine.scale(file.width / size[1], file.height / size[0])
        with WarpedVRT(file, crs=file.crs, transform=grid, width=size[1], height=size[0]) as smaller:
            rasterio.shutil.copy(smaller, target, driver="GTiff")
    return target
