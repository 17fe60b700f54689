"""Read a file, an array or a PIL image into uint8 RGB, valid pixels, and a record of the conversion.

Shape letters: H W pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.errors import install_extra
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
    has_georeference,
    has_side_file,
    is_georeferenced,
    open_dataset,
)
from skysense_o.image_io.orientation import UPRIGHT, as_stored, upright, upright_size
from skysense_o.image_io.pillow import Header, header_of, rgb_and_valid, stored_image, upright_image
from skysense_o.image_io.rgb_image import ReadRecord, RGBImage
from skysense_o.image_io.stretch import sample_indices, stretch_of, stretched, strips


def read_image(
    source: str | Path | bytes, *, max_pixels: int | None = None, name: str | None = None, alone: bool = False
) -> RGBImage:
    """Read an image file of any kind and depth.

    8-bit values are not changed. Other values are stretched so that the 2nd percentile of the valid pixels becomes 0
    and the 98th becomes 255, with one stretch for all bands. If a file has more than three bands, the bands that it
    declares as red, green and blue are used, or if it declares none, the first three. Images that are not
    georeferenced are turned upright according to EXIF.

    Args:
        source: a file, or its bytes.
        max_pixels: see `check_pixels`.
        name: name for messages, if `source` is bytes.
        alone: refuse file formats that refer to other files (VRT, HFA, ENVI); for files from untrusted sources.

    Raises:
        FileNotFoundError: the file does not exist.
        ImageError: the file is not an image, is damaged, has too many pixels, or has no valid pixel.

    >>> image = read_image("demo/yellowstone_0.4m.jpg")
    >>> image.rgb.shape, str(image.rgb.dtype), image.valid, image.record.container
    ((259, 312, 3), 'uint8', None, 'JPEG')
    """
    if isinstance(source, bytes):
        path, container, name = None, container_of_bytes(source[:64]) if source else None, name or "the image"
    else:
        path = Path(source)
        container, name = container_of(path), printable(path)
    if container is None:
        raise ImageError(f"{name} is not an image that can be read: use {', '.join(SUFFIXES)}")
    if alone and container not in PILLOW:
        raise ImageError(f"{name} is a {container} raster, which is not accepted here: use JPEG, PNG or TIFF")
    header = header_of(path or source, container)
    if header.size:
        check_pixels(name, header.size, max_pixels)
    side_file = path is not None and has_side_file(path)
    georeferenced = path is not None and has_georeference(path, container, side_file)
    if georeferenced or side_file or not header.pillow_is_enough:
        if has_geo():
            return _by_gdal(path or source, name, header, georeferenced, max_pixels)
        return _without_gdal(path or source, name, header, georeferenced, max_pixels)
    rgb, valid = _by_pillow(path or source, name, container, max_pixels)
    return _checked(rgb, valid, name, ReadRecord(container, orientation=header.orientation))


def image_size(path: str | Path) -> tuple[int, int]:
    """The size (H,W) of an image as `read_image` returns it, without decoding the pixels.

    Raises:
        FileNotFoundError, ImageError: see `read_image`.

    >>> image_size("demo/yellowstone_0.4m.jpg")
    (259, 312)
    """
    path = Path(path)
    container, name = container_of(path), printable(path)
    if container is None:
        raise ImageError(f"{name} is not an image that can be read: use {', '.join(SUFFIXES)}")
    header, georeferenced = header_of(path, container), is_georeferenced(path)
    if header.size:
        return upright_size(header.size, header.orientation) if georeferenced else header.size
    if not has_geo():
        return read_image(path).size
    with gdal_settings(), open_dataset(path) as file:
        return file.shape if georeferenced else upright_size(file.shape, header.orientation)


def as_image(image: RGBImage | Image.Image | np.ndarray, name: str = "the image") -> RGBImage:
    """Convert an array or a PIL image in the same way as `read_image` converts a file with the same values.

    Args:
        image: (H,W), (H,W,1), (H,W,3), or (H,W,4) with alpha; bool or real values. Pixels are not valid if they are not
            finite or alpha is 0.
        name: the image's name, for messages.

    Raises:
        ImageError: the image has another shape, complex values, or no valid pixel.

    >>> as_image(np.eye(2, dtype=bool)).rgb[..., 0].tolist()
    [[255, 0], [0, 255]]
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
        raise ImageError(f"{name} has shape {np.shape(image)}: expected (H,W), (H,W,3) or (H,W,4); H and W above 0")
    if array.dtype == bool:
        array = array * np.uint8(255)
    if array.dtype.kind not in "uif":
        raise ImageError(f"{name} has values of type {array.dtype}: convert them to real numbers")
    valid = None if array.shape[2] < 4 else array[..., 3] > 0
    return _from_array(array[..., :3], valid, name, "array", orientation)


def _from_array(
    array: np.ndarray, valid: np.ndarray | None, name: str, container: str, orientation: int = UPRIGHT, notes=()
) -> RGBImage:
    """Convert an upright array (H,W,1) or (H,W,3) of real numbers, strip by strip."""
    height, width, bands = array.shape
    if array.dtype.kind == "f":
        finite = np.isfinite(array).all(axis=2)
        valid = finite if valid is None else valid & finite
    stretch, notes = None, list(notes)
    if array.dtype != np.uint8:
        rows, cols = sample_indices((height, width))
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
    """RGB uint8 (H,W,3), and bool (H,W) or None; see `rgb_and_valid`."""
    image = stored_image(source, container, name, max_pixels)
    with decoding(name):
        return rgb_and_valid(image)


def _by_gdal(source: Path | bytes, name: str, header: Header, georeferenced: bool, max_pixels: int | None) -> RGBImage:
    """Read with GDAL, strip by strip, into an upright array."""
    from skysense_o.image_io.gdal_image import GDALImage

    orientation = UPRIGHT if georeferenced else header.orientation
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
        record = ReadRecord(header.container, bands, str(image.dtype), image.stretch, orientation, georeferenced, notes)
    return _checked(rgb, valid, name, record)


def _without_gdal(
    source: Path | bytes, name: str, header: Header, georeferenced: bool, max_pixels: int | None
) -> RGBImage:
    """Read with Pillow or OpenCV; refuse files that Pillow and OpenCV would read wrongly."""
    if header.container not in PILLOW:
        raise ImageError(f"{name} is a {header.container} raster, which needs: {install_extra('geo')}")
    lost = (WHAT_IS_LOST,) if georeferenced else ()
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
    """Read a color image of 16 or 32 bits, which Pillow would reduce to 8: upright RGB (H,W,3) or RGBA (H,W,4)."""
    import cv2

    tags = header.tags
    known = header.container in ("PNG", "PNM") or (tags.get(284, 1) == 1 and tags.get(262) == 2)
    if not known or tags.get(277, 3) > 4:
        raise ImageError(f"{name} is an image of a kind that needs GDAL: {install_extra('geo')}")
    with decoding(name):
        data = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.fromfile(source, np.uint8)
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if array is None or array.ndim != 3:
            raise ImageError(f"{name} is cut short or damaged")
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    return upright(array, header.orientation)


def _checked(rgb: np.ndarray, valid: np.ndarray | None, name: str, record: ReadRecord) -> RGBImage:
    """Check that there are valid pixels; `valid` becomes None if all are."""
    if rgb.size == 0:
        raise ImageError(f"{name} has no pixels")
    if valid is not None and valid.all():
        valid = None
    if valid is not None and not valid.any():
        raise ImageError(f"{name} has no valid pixel: all of it is nodata, transparent or not finite")
    return RGBImage(rgb, valid, record)


@contextmanager
def _on_disk(source: Path | bytes) -> Iterator[Path]:
    """A path for GDAL: the file itself, or a temporary file with the bytes."""
    if not isinstance(source, bytes):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(source)
        yield path
