"""Image files of many unusual kinds, each with the pixels that a reader must return.

Shape letters: H W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp as Kind
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

HEIGHT, WIDTH = 40, 56
PLACE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_200_000, 2, 2)}
WORLD = "2\n0\n0\n-2\n500001\n5199999\n"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@dataclass
class Made:
    """An image file and its expected content.

    Attributes:
        path: the file.
        values: (H,W,1) or (H,W,3) stored values, upright.
        valid: bool (H,W), or None where all pixels are valid.
        exact: False for a lossy file, whose values may differ from `values`.
    """

    path: Path
    values: np.ndarray
    valid: np.ndarray | None = None
    exact: bool = True

    def expected(self) -> np.ndarray:
        """Return the expected uint8 (H,W,3): 8-bit values as stored, others stretched from 2nd to 98th percentile."""
        values = self.values
        if values.dtype != np.uint8:
            kept = values[self.valid if self.valid is not None else np.ones(values.shape[:2], bool)].astype(np.float64)
            low, high = np.percentile(kept, (2, 98))
            values = np.clip((np.nan_to_num(values.astype(np.float64)) - low) / (high - low) * 255, 0, 255)
        return np.broadcast_to(values, (*values.shape[:2], 3))


def colours(seed: int = 0) -> np.ndarray:
    """Return a uint8 (H,W,3) image without symmetry whose channels all differ."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rng = np.random.default_rng(seed)
    base = np.stack([x * 4, y * 6, 255 - x * 2 - y * 2], -1)
    return np.clip(base + rng.integers(0, 9, base.shape), 1, 255).astype(np.uint8)


def deep(dtype=np.uint16) -> np.ndarray:
    return colours().astype(dtype) * 200 + 1000


def hole() -> np.ndarray:
    """Return a bool (H,W) mask that is False in one corner."""
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[:12, :30] = False
    return valid


def write(path: Path, array: np.ndarray, kinds=None, colormap=None, **options) -> Path:
    """Write an (H,W,C) array with GDAL; `kinds` are the bands' colour interpretations."""
    options = {"driver": "GTiff", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        shape = {"height": array.shape[0], "width": array.shape[1], "count": array.shape[2]}
        with rasterio.open(path, "w", dtype=array.dtype, **shape, **options) as file:
            if kinds:
                file.colorinterp = kinds
            file.write(array.transpose(2, 0, 1))
            if colormap:
                file.write_colormap(1, colormap)
    return path


def _pillow(name: str, mode: str = "RGB", **options) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        image = Image.fromarray(colours()).convert(mode)
        image.save(folder / name, **options)
        return Made(folder / name, np.asarray(image.convert("RGB")))

    return make


def _turned(suffix: str, turn: int, dtype=np.uint8) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        upright = colours() if dtype == np.uint8 else deep()[..., :1]
        back = {5: 5, 6: 8, 8: 6, 7: 7}.get(turn, turn)
        stored = Image.fromarray(upright if dtype == np.uint8 else upright[..., 0]).transpose(TURNS[back])
        path, exif = folder / f"a{suffix}", Image.Exif()
        exif[0x0112] = turn
        options = {"tiffinfo": {0x0112: turn}} if suffix == ".tif" else {"exif": exif}
        stored.save(path, **options, **{".jpg": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {}))
        return Made(path, upright, exact=suffix != ".jpg")

    return make


def _gdal(name: str, array: Callable[[], np.ndarray], valid=None, shown=slice(0, 3), **options):
    def make(folder: Path) -> Made:
        values = array()
        return Made(write(folder / name, values, **options), values[..., shown], valid() if valid else None)

    return make


def _opencv(name: str, alpha: bool = False, grey: bool = False) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        values, valid = deep(), hole() if alpha else None
        stored = values[..., :1] if grey else values[..., ::-1]
        if alpha:
            stored = np.concatenate([stored, hole()[..., None].astype(np.uint16) * 65535], -1)
        assert cv2.imwrite(str(folder / name), stored)
        return Made(folder / name, values[..., :1] if grey else values, valid)

    return make


def _clear(name: str, mode: str, **options) -> Callable[[Path], Made]:
    """Return a function that writes an image with an 8-bit alpha channel, using Pillow."""

    def make(folder: Path) -> Made:
        grey = mode == "LA"
        image = Image.fromarray(colours()).convert("L" if grey else "RGB")
        image.putalpha(Image.fromarray(hole().astype(np.uint8) * 255))
        image.save(folder / name, **options)
        values = np.asarray(image.convert("RGB"))
        return Made(folder / name, values[..., :1] if grey else values, hole())

    return make


def _holed(fill, dtype) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        values = deep(dtype)
        values[~hole()] = fill
        return values

    return make


def _with_bands(*extra: np.ndarray | int, dtype=np.uint8) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        base = colours() if dtype == np.uint8 else deep()
        planes = [np.broadcast_to(np.asarray(e, dtype), base.shape[:2]) for e in extra]
        return np.concatenate([base, np.stack(planes, -1)], -1)

    return make


def _alpha(dtype=np.uint8) -> np.ndarray:
    return hole().astype(dtype) * np.iinfo(dtype).max


def _palette16(folder: Path) -> Made:
    ids = (np.arange(HEIGHT * WIDTH) % 1024).astype(np.uint16).reshape(HEIGHT, WIDTH, 1)
    table = {i: (i // 4, 255 - i // 4, i % 256, 255) for i in range(1024)}
    write(folder / "a.tif", ids, colormap=table, photometric="palette")
    return Made(folder / "a.tif", np.array([table[i][:3] for i in range(1024)], np.uint8)[ids[..., 0]])


def _transparent_palette(folder: Path) -> Made:
    ids = np.where(hole(), 1 + (np.arange(WIDTH) % 3), 0).astype(np.uint8)
    image = Image.fromarray(ids, "P")
    image.putpalette([0, 0, 0, 200, 30, 10, 20, 220, 40, 50, 60, 240])
    image.save(folder / "a.png", transparency=0)
    return Made(folder / "a.png", np.asarray(image.convert("RGB")), hole())


def _min_is_white(folder: Path) -> Made:
    grey = colours()[..., :1]
    return Made(write(folder / "a.tif", grey, photometric="MINISWHITE"), 255 - grey)


def _blue_first(folder: Path) -> Made:
    kinds = [Kind.undefined, Kind.blue, Kind.green, Kind.red]
    values = np.concatenate([np.full((HEIGHT, WIDTH, 1), 7, np.uint16), deep()[..., ::-1]], -1)
    return Made(write(folder / "a.tif", values, kinds), deep())


def _cmyk(folder: Path) -> Made:
    image = Image.fromarray(colours()).convert("CMYK")
    image.save(folder / "a.tif")
    return Made(folder / "a.tif", np.asarray(image.convert("RGB")))


def _not_a_number() -> np.ndarray:
    values = deep(np.float64)
    values[~hole()] = np.nan
    return values


def _beside(name: str, side: str, text: str = WORLD) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        (folder / side).write_text(text)
        Image.fromarray(colours()).save(folder / name)
        return Made(folder / name, colours(), exact=not name.endswith("jpg"))

    return make


def _vrt(folder: Path) -> Made:
    from rasterio.shutil import copy

    write(folder / "parts.tif", deep(), **PLACE, photometric="RGB")
    copy(folder / "parts.tif", folder / "a.vrt", driver="VRT")
    return Made(folder / "a.vrt", deep())


AUX = "<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>500000, 2, 0, 5200000, 0, -2</GeoTransform></PAMDataset>"
RGB_ALPHA = [Kind.red, Kind.green, Kind.blue]

PLAIN: dict[str, Callable[[Path], Made]] = {
    "png": _pillow("a.png"),
    "png grey": _pillow("a.png", "L"),
    "png 1 bit": _pillow("a.png", "1"),
    "png palette": _pillow("a.png", "P"),
    "png palette with a transparent entry": _transparent_palette,
    "png grey and alpha": _clear("a.png", "LA"),
    "png rgb and alpha": _clear("a.png", "RGBA"),
    "png 16 bits grey": _opencv("a.png", grey=True),
    "png 16 bits": _opencv("a.png"),
    "png 16 bits and alpha": _opencv("a.png", alpha=True),
    "tiff": _pillow("a.tif"),
    "tiff packed": _pillow("a.tif", compression="tiff_lzw"),
    "tiff 1 bit": _pillow("a.tif", "1"),
    "tiff palette": _pillow("a.tif", "P"),
    "tiff palette of 16 bits": _palette16,
    "tiff cmyk": _cmyk,
    "tiff grey and alpha": _clear("a.tif", "LA"),
    "tiff 0 is white": _min_is_white,
    "tiff 16 bits by pixel": _gdal("a.tif", deep, photometric="RGB", interleave="pixel"),
    "tiff 16 bits by band": _gdal("a.tif", deep, photometric="RGB", interleave="band"),
    "tiff 8 bits by band": _gdal("a.tif", colours, photometric="RGB", interleave="band"),
    "tiff 16 bits big": _gdal("a.tif", deep, photometric="RGB", BIGTIFF="YES"),
    "tiff 16 bits, four bands": _gdal("a.tif", _with_bands(40000, dtype=np.uint16)),
    "tiff 8 bits, five bands": _gdal("a.tif", _with_bands(9, 9)),
    "tiff near infrared first, then blue": _blue_first,
    "tiff alpha is band 5": _gdal(
        "a.tif", _with_bands(9, _alpha()), hole, kinds=[*RGB_ALPHA, Kind.undefined, Kind.alpha]
    ),
    "tiff alpha is band 6 of 16 bits": _gdal(
        "a.tif", _with_bands(9, 9, _alpha(np.uint16), dtype=np.uint16), hole,
        kinds=[*RGB_ALPHA, Kind.undefined, Kind.undefined, Kind.alpha],
    ),
    "tiff float with nodata": _gdal("a.tif", _holed(-9999, np.float32), hole, nodata=-9999),
    "tiff 16 bits with nodata": _gdal("a.tif", _holed(0, np.uint16), hole, nodata=0),
    "tiff int16 with nodata": _gdal(
        "a.tif", lambda: (_holed(0, np.int32)() - 20_000).astype(np.int16), hole, nodata=-20_000
    ),
    "tiff uint32": _gdal("a.tif", lambda: deep(np.uint32) * 1000),
    "tiff int32": _gdal("a.tif", lambda: deep(np.int32) - 20_000),
    "tiff float64, not a number": _gdal("a.tif", _not_a_number, hole),
    "tiff grey float": _gdal("a.tif", lambda: deep(np.float32)[..., :1] / 7),
    "jpeg 2000": _gdal("a.jp2", colours, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES"),
    "jpeg 2000 of 16 bits": _gdal("a.jp2", deep, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES"),
    "bmp": _pillow("a.bmp"),
    "gif": _pillow("a.gif", "P"),
    "webp": _pillow("a.webp", lossless=True),
    "ppm": _pillow("a.ppm"),
    "pgm of 16 bits": _opencv("a.pgm", grey=True),
    "ppm of 16 bits": _opencv("a.ppm"),
    **{f"png, orientation {turn}": _turned(".png", turn) for turn in TURNS},
    "jpeg, orientation 6": _turned(".jpg", 6),
    "webp, orientation 7": _turned(".webp", 7),
    "tiff, orientation 5": _turned(".tif", 5),
    "tiff 16 bits, orientation 8": _turned(".tif", 8, np.uint16),
    "png 16 bits, orientation 6": _turned(".png", 6, np.uint16),
}  # fmt: skip
PLACED: dict[str, Callable[[Path], Made]] = {
    "geotiff": _gdal("a.tif", colours, photometric="RGB", **PLACE),
    "geotiff 16 bits with nodata": _gdal("a.tif", _holed(0, np.uint16), hole, nodata=0, **PLACE),
    "geotiff float with nodata": _gdal("a.tif", _holed(-9999, np.float32), hole, nodata=-9999, **PLACE),
    "geotiff rgb and alpha": _gdal("a.tif", _with_bands(_alpha()), hole, kinds=[*RGB_ALPHA, Kind.alpha], **PLACE),
    "geotiff without suffix": _gdal("scene", deep, photometric="RGB", **PLACE),
    "png and .pgw": _beside("a.png", "a.pgw"),
    "png and .PGW": _beside("a.png", "a.PGW"),
    "tif and .TFW": _beside("a.TIF", "a.TFW"),
    "jpg and .jgw": _beside("a.jpg", "a.jgw"),
    "png and .aux.xml": _beside("a.png", "a.png.aux.xml", AUX),
    "jpeg 2000 with a place": _gdal("a.jp2", deep, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES", **PLACE),
    "erdas .img": _gdal("a.img", deep, driver="HFA", **PLACE),
    "envi": _gdal("a.dat", deep, driver="ENVI", **PLACE),
    ".vrt of a local file": _vrt,
}
