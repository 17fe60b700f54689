"""Read files with Pillow: header, tags, and images of 8 bits per channel.

Shape letters: H W pixels.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from skysense_o.errors import install_extra
from skysense_o.image_io.files import ImageError, check_pixels, decoding
from skysense_o.image_io.orientation import UPRIGHT, upright_size

_FORMATS = {
    "TIFF": ("TIFF",), "PNG": ("PNG",), "JPEG": ("JPEG", "MPO"), "JPEG2000": ("JPEG2000",), "GIF": ("GIF",),
    "BMP": ("BMP",), "WEBP": ("WEBP",), "PNM": ("PPM",),
}  # fmt: skip
_ORIENTATION, _NODATA = 0x0112, 42113
_GEO_TAGS = (33550, 33922, 34264, 34735, 50844)  # scale, tie points, transformation, keys, RPCs
_DEEP_MODES = ("I", "F")
_opening = threading.Lock()


@dataclass(frozen=True)
class Header:
    """The properties of a file that are known before it is decoded.

    Attributes:
        container: the file format, see `container_of`.
        mode: Pillow's mode of the image; None if Pillow cannot decode the file.
        size: (H,W) of the upright image; None if unknown.
        deep: whether values have more than 8 bits.
        orientation: 1 to 8 as in EXIF.
        tags: tag number -> value, for TIFFs.
    """

    container: str
    mode: str | None = None
    size: tuple[int, int] | None = None
    deep: bool = False
    orientation: int = UPRIGHT
    tags: dict = field(default_factory=dict)

    @property
    def nodata(self) -> float | None:
        """The value that a TIFF declares for pixels without data, or None."""
        try:
            return float(str(self.tags[_NODATA]).strip("\0 "))
        except (KeyError, ValueError):
            return None

    @property
    def has_geo_tags(self) -> bool:
        """Whether a TIFF has tags that give a georeference."""
        return any(tag in self.tags for tag in _GEO_TAGS)

    @property
    def pillow_is_enough(self) -> bool:
        """Whether Pillow can read all of the file: values of 8 bits, no declared nodata, no additional bands."""
        bands, extra = self.tags.get(277, 1), _tuple(self.tags, 338, 0)
        # Tag 42112 holds GDAL's band descriptions. If it exists, a fourth band is only alpha if it is declared there.
        special = _NODATA in self.tags or (bands > 3 and (42112 in self.tags or bands > 4)) or len(extra) > 1
        # Pillow rejects some valid JPEG 2000 files, WebP in TIFF (Pillow's libtiff lacks WebP), and YCbCr without JPEG.
        compression = self.tags.get(259, 1)
        special = special or compression == 50001 or (self.tags.get(262) == 6 and compression not in (6, 7))
        return self.mode is not None and not self.deep and not special and self.container != "JPEG2000"


def open_image_file(source: Path | io.BytesIO, container: str) -> Image.Image:
    """Open an image with Pillow without decoding it. The caller has to check the number of pixels.

    Pillow's own limit of pixels is a setting of the whole process, so it is switched off only during this call.
    """
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source, formats=_FORMATS[container])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def header_of(source: Path | bytes, container: str) -> Header:
    """Read the header of a file, or of its bytes. Mode and size are None for files that Pillow does not support."""
    if container not in _FORMATS:
        return Header(container)
    tags = _tiff_tags(source) if container == "TIFF" else {}
    try:
        with open_image_file(_stream(source), container) as image:
            deep = image.mode in _DEEP_MODES or image.mode.startswith("I;") or _reduces(image, container)
            if container == "TIFF":  # the mode of planar TIFFs does not show the depth
                deep = deep or max(_tuple(tags, 258, 1)) > 8 or any(kind != 1 for kind in _tuple(tags, 339, 1))
            if container == "JPEG2000":
                deep = deep or _jpeg2000_bits(_first_bytes(source)) > 8
            turn = _orientation_of(image, source)
            size = image.size[::-1]  # for a TIFF, Pillow returns the upright size
            size = size if container == "TIFF" else upright_size(size, turn)
            return Header(container, image.mode, size, deep, turn, tags)
    except Exception:  # decoding the file will report what is wrong
        turn = tags.get(_ORIENTATION, UPRIGHT)
        return Header(container, orientation=turn if turn in range(1, 9) else UPRIGHT, tags=tags)


def stored_image(source: Path | bytes, container: str, name: str, max_pixels: int | None = None) -> Image.Image:
    """Decode an image with Pillow. Pixels stay as they are stored, except that Pillow itself turns TIFFs upright.

    Args:
        source: a file, or its bytes.
        name: the image's name, for messages.
        max_pixels: see `check_pixels`.

    Raises:
        ImageError: the file is damaged, not supported by Pillow, or has too many pixels.
    """
    if container not in _FORMATS:
        raise ImageError(f"{name} is a {container} raster, which needs GDAL: {install_extra('geo')}")
    with decoding(name):
        if container == "TIFF" and isinstance(source, Path) and _tiff_tags(source).get(_ORIENTATION, UPRIGHT) > 4:
            source = source.read_bytes()  # Pillow turns memory-mapped files wrongly
        image = open_image_file(_stream(source), container)
        check_pixels(name, image.size[::-1], max_pixels)
        image.load()
        return image


def upright_image(image: Image.Image) -> Image.Image:
    """Turn an image upright according to EXIF, and remove the orientation from EXIF."""
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, UPRIGHT) != UPRIGHT else image


def rgb_and_valid(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert an 8-bit Pillow image to upright RGB, uint8 (H,W,3), and valid pixels, bool (H,W).

    Pixels with alpha above 0 are valid. If the image has no alpha, None is returned in place of the valid pixels.
    """
    image = upright_image(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[..., :3]), rgba[..., 3] > 0
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), None


def _orientation_of(image: Image.Image, source: Path | bytes) -> int:
    """Orientation from EXIF or XMP, without decoding the image."""
    turn = Image.Image.getexif(image).get(_ORIENTATION)  # the method of PNG images would decode the image
    if turn is None and image.format == "PNG":
        exif = Image.Exif()
        exif.load(_png_exif(source))
        turn = exif.get(_ORIENTATION)
    return turn if turn in range(1, 9) else UPRIGHT


def _png_exif(source: Path | bytes) -> bytes:
    """The EXIF chunk of a PNG, which may come after the pixels; empty if there is none."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, io.SEEK_CUR)
    return b""


def _stream(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _first_bytes(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:1024]
    with open(source, "rb") as file:
        return file.read(1024)


def _reduces(image: Image.Image, container: str) -> bool:
    """Whether Pillow would reduce 16-bit values to their upper 8 bits."""
    for tile in image.tile:
        if ";16" in str(tile[3]):
            return container != "BMP"  # "16" in a BMP means 16 bits per pixel, not per channel
        if container == "PNM" and isinstance(tile[3], tuple) and tile[3][-1] > 255:
            return True
    return False


def _jpeg2000_bits(head: bytes) -> int:
    at = head.find(b"ihdr")
    depth = head[at + 14 : at + 15] if at >= 0 else head[42:43]
    return (depth[0] & 0x7F) + 1 if depth else 8


def _tuple(tags: dict, tag: int, default: int) -> tuple:
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def _tiff_tags(source: Path | bytes) -> dict:
    """The tags of the first image in a TIFF or BigTIFF, even if Pillow cannot decode it; empty if it is damaged."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            head = file.read(8)
            if head[2:3] == b"\x2b" or head[3:4] == b"\x2b":
                head += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return dict(tags)
    except Exception:  # decoding the file will report what is wrong
        return {}
