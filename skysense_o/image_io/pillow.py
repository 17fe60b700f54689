"""What Pillow knows of a file: header, tags, and the decoded image of 8 bits per channel. Alphabet: H W pixels."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

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
    """What is known of a file before it is decoded.

    mode: Pillow's, None where Pillow cannot decode it. deep: more than 8 bits per value. size: (H,W) as it is to be
    seen, None where unknown. tags: of a TIFF, number -> value.
    """

    container: str
    mode: str | None = None
    size: tuple[int, int] | None = None
    deep: bool = False
    orientation: int = UPRIGHT
    tags: dict = field(default_factory=dict)

    @property
    def nodata(self) -> float | None:
        """The value that a TIFF declares for pixels without data."""
        try:
            return float(str(self.tags[_NODATA]).strip("\0 "))
        except (KeyError, ValueError):
            return None

    @property
    def has_geo_tags(self) -> bool:
        return any(tag in self.tags for tag in _GEO_TAGS)

    @property
    def pillow_is_enough(self) -> bool:
        """Whether Pillow decodes all of it: nothing deep, no declared nodata, no bands beyond the known kinds."""
        bands, extra = self.tags.get(277, 1), _tuple(self.tags, 338, 0)
        # 42112: GDAL's own names of bands, where an alpha may be among them. Without a kind, a fourth band is no alpha.
        special = _NODATA in self.tags or (bands > 3 and (42112 in self.tags or bands > 4)) or len(extra) > 1
        # Pillow takes some JPEG 2000 files for broken that are not.
        return self.mode is not None and not self.deep and not special and self.container != "JPEG2000"


def open_image_file(source: Path | io.BytesIO, container: str) -> Image.Image:
    """A Pillow image that is not decoded yet. Its number of pixels is the caller's to check.

    Pillow's own limit holds for a whole process; it is set aside for this one call only.
    """
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source, formats=_FORMATS[container])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def header_of(source: Path | bytes, container: str) -> Header:
    """The header of a file, or of its bytes; a file that Pillow does not know gives one without mode and size."""
    if container not in _FORMATS:
        return Header(container)
    tags = _tiff_tags(source) if container == "TIFF" else {}
    try:
        with open_image_file(_stream(source), container) as image:
            deep = image.mode in _DEEP_MODES or image.mode.startswith("I;") or _reduces(image, container)
            if container == "TIFF":  # of planar ones the modes do not tell
                deep = deep or max(_tuple(tags, 258, 1)) > 8 or any(kind != 1 for kind in _tuple(tags, 339, 1))
            if container == "JPEG2000":
                deep = deep or _jpeg2000_bits(_first_bytes(source)) > 8
            turn = _orientation_of(image, source)
            size = image.size[::-1]  # of a TIFF Pillow tells it turned already
            size = size if container == "TIFF" else upright_size(size, turn)
            return Header(container, image.mode, size, deep, turn, tags)
    except Exception:  # what is wrong with it is told by whatever decodes it
        turn = tags.get(_ORIENTATION, UPRIGHT)
        return Header(container, orientation=turn if turn in range(1, 9) else UPRIGHT, tags=tags)


def stored_image(source: Path | bytes, container: str, name: str, max_pixels: int | None = None) -> Image.Image:
    """A decoded Pillow image, as stored but for a TIFF's own orientation, which Pillow applies itself.

    Raises:
        ImageError: damaged, of a kind that Pillow does not know, or with too many pixels.
    """
    if container not in _FORMATS:
        raise ImageError(f'{name} is a {container} raster, which an extra reads: pip install -e ".[geo]"')
    with decoding(name):
        if container == "TIFF" and isinstance(source, Path) and _tiff_tags(source).get(_ORIENTATION, UPRIGHT) > 4:
            source = source.read_bytes()  # Pillow maps some files into memory, and those it turns wrongly
        image = open_image_file(_stream(source), container)
        check_pixels(name, image.size[::-1], max_pixels)
        image.load()
        return image


def upright_image(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, which then says nothing any more."""
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, UPRIGHT) != UPRIGHT else image


def rgb_and_valid(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """A decoded Pillow image of 8 bits -> uint8 (H,W,3), upright; and bool (H,W), where alpha is not 0, or None."""
    image = upright_image(image)
    clear = image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info
    valid = np.asarray(image.convert("RGBA").getchannel("A")) > 0 if clear else None
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), valid


def _orientation_of(image: Image.Image, source: Path | bytes) -> int:
    """By EXIF or XMP, without decoding; in a PNG the chunk may lie behind the pixels."""
    turn = Image.Image.getexif(image).get(_ORIENTATION)  # PNG's own method would decode the image
    if turn is None and image.format == "PNG":
        exif = Image.Exif()
        exif.load(_png_exif(source))
        turn = exif.get(_ORIENTATION)
    return turn if turn in range(1, 9) else UPRIGHT


def _png_exif(source: Path | bytes) -> bytes:
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
    """Whether Pillow would cut values of 16 bits down to their upper 8."""
    for tile in image.tile:
        if ";16" in str(tile[3]):
            return container != "BMP"  # there it is 16 bits for a pixel, not for a channel
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
    """The tags of the first image of a TIFF or BigTIFF, even of one that Pillow cannot decode."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            head = file.read(8)
            if head[2:3] == b"\x2b" or head[3:4] == b"\x2b":
                head += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return dict(tags)
    except Exception:  # a damaged TIFF has none; decoding it tells what is wrong
        return {}
