"""One reader for every door: a file, an array or a PIL image -> uint8 RGB, what of it is valid, and what was done.

Alphabet: H W pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.image_io.files import (
    PILLOW,
    SUFFIXES,
    ImageError,
    check_pixels,
    container_of,
    container_of_bytes,
    decoding,
    printable,
)
from skysense_o.image_io.gdal_access import (
    WHAT_IS_LOST,
    gdal_settings,
    has_geo,
    has_place,
    has_side_file,
    is_georeferenced,
    open_dataset,
)
from skysense_o.image_io.orientation import UPRIGHT, as_stored, upright, upright_size
from skysense_o.image_io.pillow import Header, header_of, rgb_and_valid, stored_image, upright_image
from skysense_o.image_io.stretch import sample_places, stretch_of, stretched, strips

FILL = (124, 116, 104)
"""RGB of pixels without data where a model is to see them: the mean colour of ImageNet, which says little to any."""


@dataclass(frozen=True)
class ReadRecord:
    """What was done to an image.

    container: "PNG", "TIFF", ... or "array". bands: those taken, from 1. dtype: of the stored values. stretch: (the
    value that became 0, the one that became 255), the same for all bands; None for 8 bits. orientation: by EXIF, 1
    for none. placed: it has a place on the ground. notes: what a user should be told once.
    """

    container: str
    bands: tuple[int, ...] = (1, 2, 3)
    dtype: str = "uint8"
    stretch: tuple[float, float] | None = None
    orientation: int = UPRIGHT
    placed: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RGBImage:
    """rgb: uint8 (H,W,3), upright. valid: bool (H,W), or None where every pixel has data."""

    rgb: np.ndarray
    valid: np.ndarray | None = None
    record: ReadRecord = field(default_factory=lambda: ReadRecord("array"))

    @property
    def size(self) -> tuple[int, int]:
        return self.rgb.shape[:2]

    def filled(self, color=FILL) -> np.ndarray:
        """uint8 (H,W,3) in which pixels without data have this colour, as models see them. Maybe `rgb` itself."""
        if self.valid is None:
            return self.rgb
        rgb = self.rgb.copy()
        rgb[~self.valid] = [round(value) for value in color]
        return rgb


def read_image(
    source: str | Path | bytes, *, max_pixels: int | None = None, name: str | None = None, alone: bool = False
) -> RGBImage:
    """Read an image file of any kind and depth.

    Values of 8 bits are taken as they are. Others are stretched between the 2nd and 98th percentile of the valid
    pixels, once for the file. Of more than three bands those are taken that the file names red, green and blue, else
    the first three. An image without a place on the ground is turned upright as EXIF says.

    Args:
        source: a file, or the bytes of one. max_pixels: see `check_pixels`. name: of bytes, for messages.
        alone: refuse kinds that name other files (VRT, HFA, ENVI), as is right for a file that a stranger gave.

    Raises:
        FileNotFoundError: no such file. ImageError: anything else that is wrong with it.
    """
    if isinstance(source, bytes):
        path, container, name = None, container_of_bytes(source[:64]) if source else None, name or "the image"
    else:
        path = Path(source)
        container, name = container_of(path), printable(path)
    if container is None:
        raise ImageError(f"{name} is not an image that can be read: use {', '.join(SUFFIXES)}")
    if alone and container not in PILLOW:
        raise ImageError(f"{name} is a {container} raster, which is not taken here: use JPEG, PNG or TIFF")
    header = header_of(path or source, container)
    if header.size:
        check_pixels(name, header.size, max_pixels)
    side_file = path is not None and has_side_file(path)
    placed = path is not None and has_place(path, container, side_file)
    if placed or side_file or not header.pillow_is_enough:
        if has_geo():
            return _by_gdal(path or source, name, header, placed, max_pixels)
        return _without_gdal(path or source, name, header, placed, max_pixels)
    rgb, valid = _by_pillow(path or source, name, container, max_pixels)
    return _checked(rgb, valid, name, ReadRecord(container, orientation=header.orientation))


def image_size(path: str | Path) -> tuple[int, int]:
    """(H,W) as `read_image` gives it, without decoding the pixels. Raises as `read_image` does."""
    path = Path(path)
    container, name = container_of(path), printable(path)
    if container is None:
        raise ImageError(f"{name} is not an image that can be read: use {', '.join(SUFFIXES)}")
    header, placed = header_of(path, container), is_georeferenced(path)
    if header.size:
        return upright_size(header.size, header.orientation) if placed else header.size
    if not has_geo():
        return read_image(path).size
    with gdal_settings(), open_dataset(path) as file:
        return file.shape if placed else upright_size(file.shape, header.orientation)


def as_image(image: RGBImage | Image.Image | np.ndarray, name: str = "the image") -> RGBImage:
    """An array or PIL image as `read_image` gives a file with the same values.

    Args:
        image: (H,W), (H,W,1), (H,W,3), or (H,W,4) with alpha, of any real numbers; bool is black and white. Values
            that are not finite, and where alpha is 0, are not valid.

    Raises:
        ImageError: another shape; complex numbers; nothing valid.
    """
    if isinstance(image, RGBImage):
        return image
    orientation = UPRIGHT
    if isinstance(image, Image.Image):
        with decoding(name):
            image.load()
            orientation = image.getexif().get(0x0112, UPRIGHT)
            if not (image.mode in ("I", "F") or image.mode.startswith("I;")):
                rgb, valid = rgb_and_valid(image)
                return _checked(rgb, valid, name, ReadRecord("array", orientation=orientation))
            image = np.asarray(upright_image(image))
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ImageError(f"{name} has shape {np.shape(image)}: expected (H,W), (H,W,3) or (H,W,4), none of it 0")
    if array.dtype == bool:
        array = array * np.uint8(255)
    if array.dtype.kind not in "uif":
        raise ImageError(f"{name} has values of type {array.dtype}: give it real numbers")
    valid = None if array.shape[2] < 4 else array[..., 3] > 0
    return _from_array(array[..., :3], valid, name, "array", orientation)


def _from_array(
    array: np.ndarray, valid: np.ndarray | None, name: str, container: str, orientation: int = UPRIGHT, notes=()
) -> RGBImage:
    """(H,W,1) or (H,W,3) of any real type, upright, strip by strip."""
    height, width, bands = array.shape
    if array.dtype.kind == "f":
        finite = np.isfinite(array).all(axis=2)
        valid = finite if valid is None else valid & finite
    stretch, notes = None, list(notes)
    if array.dtype != np.uint8:
        rows, cols = sample_places((height, width))
        values = array[rows[:, None], cols]
        values = values if valid is None else values[valid[rows[:, None], cols]]
        if values.size == 0 and valid is not None and valid.any():
            values = array[valid]
        if values.size == 0:
            raise ImageError(f"{name} has no valid pixel: all of it is nodata, transparent or not finite")
        stretch = stretch_of(values)
        notes.append(f"values of {array.dtype} from {stretch[0]:g} to {stretch[1]:g} are stretched to 0..255")
    if stretch is None and bands == 3:
        rgb = np.ascontiguousarray(array)
    else:
        rgb = np.empty((height, width, 3), np.uint8)
        for strip in strips(height, width * bands * max(4, array.dtype.itemsize)):
            part = array[strip.start : strip.stop]
            rgb[strip.start : strip.stop] = part if stretch is None else stretched(part, stretch)
    record = ReadRecord(
        container, tuple(range(1, bands + 1)), str(array.dtype), stretch, orientation, notes=tuple(notes)
    )
    return _checked(rgb, valid, name, record)


def _by_pillow(source, name: str, container: str, max_pixels: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    image = stored_image(source, container, name, max_pixels)
    with decoding(name):
        return rgb_and_valid(image)


def _by_gdal(source: Path | bytes, name: str, header: Header, placed: bool, max_pixels: int | None) -> RGBImage:
    """Through GDAL, strip by strip, straight into the upright image."""
    from skysense_o.image_io.gdal_image import GDALImage

    orientation = UPRIGHT if placed else header.orientation
    with gdal_settings(), _on_disk(source) as path, GDALImage(path, name=name, max_pixels=max_pixels) as image:
        size = upright_size(image.size, orientation)
        rgb = np.empty((*size, 3), np.uint8)
        valid = None if image.all_valid else np.empty(size, bool)
        for strip in image.strips():
            colours, part = image.strip(strip)
            as_stored(rgb, orientation)[strip.start : strip.stop] = colours.transpose(1, 2, 0)
            if valid is not None:
                as_stored(valid, orientation)[strip.start : strip.stop] = part
        bands, notes = tuple(image.bands), tuple(image.notes)
        record = ReadRecord(header.container, bands, str(image.dtype), image.stretch, orientation, placed, notes)
    return _checked(rgb, valid, name, record)


def _without_gdal(source: Path | bytes, name: str, header: Header, placed: bool, max_pixels: int | None) -> RGBImage:
    """As much as Pillow and OpenCV can do; what they would read wrongly is refused."""
    if header.container not in PILLOW:
        raise ImageError(f'{name} is a {header.container} raster, which needs: pip install -e ".[geo]"')
    lost = (WHAT_IS_LOST,) if placed else ()
    if header.mode in ("I", "F") or (header.mode or "").startswith("I;"):
        array = np.asarray(upright_image(stored_image(source, header.container, name, max_pixels)))[..., None]
    elif header.mode and not header.deep:
        array, valid = _by_pillow(source, name, header.container, max_pixels)
        if valid is None and header.nodata is not None:
            valid = (array != header.nodata).any(axis=2)
        return _checked(array, valid, name, ReadRecord(header.container, orientation=header.orientation, notes=lost))
    else:
        array = _by_opencv(source, name, header)
    valid = None if header.nodata is None else (array[..., :3] != header.nodata).any(axis=2)
    if array.shape[2] == 4:
        valid = (array[..., 3] > 0) & (True if valid is None else valid)
    return _from_array(array[..., :3], valid, name, header.container, header.orientation, lost)


def _by_opencv(source: Path | bytes, name: str, header: Header) -> np.ndarray:
    """(H,W,3) or (H,W,4) of 16 or 32 bits, upright, RGB: the deep colour images that Pillow cuts to 8 bits."""
    import cv2

    tags = header.tags
    known = header.container in ("PNG", "PNM") or (tags.get(284, 1) == 1 and tags.get(262) == 2)
    if not known or tags.get(277, 3) > 4:
        raise ImageError(f'{name} is of a kind that needs GDAL: pip install -e ".[geo]"')
    with decoding(name):
        data = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.fromfile(source, np.uint8)
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if array is None or array.ndim != 3:
            raise ImageError(f"{name} is cut short or damaged")
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    return upright(array, header.orientation)


def _checked(rgb: np.ndarray, valid: np.ndarray | None, name: str, record: ReadRecord) -> RGBImage:
    if rgb.size == 0:
        raise ImageError(f"{name} has no pixels")
    if valid is not None and valid.all():
        valid = None
    if valid is not None and not valid.any():
        raise ImageError(f"{name} has no valid pixel: all of it is nodata, transparent or not finite")
    return RGBImage(rgb, valid, record)


@contextmanager
def _on_disk(source: Path | bytes) -> Iterator[Path]:
    """A path under which GDAL finds the file."""
    if not isinstance(source, bytes):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(source)
        yield path
