"""Read rasters with GDAL: which bands become RGB, which pixels are valid, and one stretch for the whole raster.

`scenes.raster.Raster` extends `GDALImage`, and `read_image` uses it for files that Pillow cannot read completely, so
both give the same pixels.

Shape letters: H W pixels of the file as stored, h w pixels that are requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.windows import Window

from skysense_o.image_io.files import ImageError, check_pixels, decoding, printable
from skysense_o.image_io.gdal_access import open_dataset
from skysense_o.image_io.stretch import sample_indices, sample_shape, stretch_of, stretched, strips

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_CMYK = (ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black)
_ROW_BY_ROW = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
"""Drivers without random access: for a reduced image they decode the whole file, once per band."""


class GDALImage:
    """An open raster: RGB values and validity of any window. Use it inside `gdal_settings`, in one thread.

    Attributes:
        size: (H,W). bands: indices from 1. dtype: the type of the stored values.
        stretch: (value that becomes 0, value that becomes 255), or None.
        notes: remarks on the conversion for the user.
    """

    def __init__(
        self,
        path: str | Path,
        bands: Sequence[int] | None = None,
        *,
        remote: bool = False,
        name: str | None = None,
        max_pixels: int | None = 0,
    ) -> None:
        """
        Args:
            path: path of the raster.
            bands: numbers, from 1, of three bands or of one; None: the bands that the file declares as red, green and
                blue; if there are none, the first three bands; if there are fewer, the first band.
            remote: see `open_dataset`.
            name: the image's name, for messages; None: the path.
            max_pixels: see `check_pixels`; no limit by default, because a raster is read in windows.

        Raises:
            FileNotFoundError: the file does not exist.
            ImageError: the file cannot be read, has no such bands, or has no valid pixel.
        """
        self.path, self.remote = Path(path), remote
        self.name = name or printable(self.path)
        self.file = open_dataset(self.path, remote)
        try:
            self.size: tuple[int, int] = self.file.shape
            check_pixels(self.name, self.size, max_pixels)
            self.notes: list[str] = []  # remarks on the conversion, for the user
            with decoding(self.name):
                self.bands = self._choose(bands)
                self.dtype = np.result_type(*(self.file.dtypes[b - 1] for b in self.bands))
                self.palette, self.clear = self._palette()
                self.scale, self.inverted = self._grey_scale()
                self.alpha = self._extra_alpha()
                flags = [self.file.mask_flag_enums[b - 1] for b in self.bands]
            self.all_valid = (
                self.dtype.kind != "f"
                and all(MaskFlags.all_valid in flag for flag in flags)
                and self.alpha is None
                and self.clear is None
            )
            self.stretch: tuple[float, float] | None = self._measure()
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def strip(self, rows: range) -> tuple[np.ndarray, np.ndarray | None]:
        """Read whole rows: RGB uint8 (3,rows,W), and validity bool (rows,W), or None if all pixels are valid."""
        shape, window = (len(rows), self.size[1]), Window(0, rows.start, self.size[1], len(rows))
        raw = self.read(window, shape)
        return self.colours(raw), None if self.all_valid else self.valid_of(window, shape, raw)

    def strips(self) -> list[range]:
        """All rows, in ranges of a few MiB that end at the file's block boundaries."""
        per_row = self.size[1] * len(self.bands) * max(4, self.dtype.itemsize)
        block = self.file.block_shapes[self.bands[0] - 1][0]
        return strips(self.size[0], per_row, block if block * per_row <= 2**26 else 1)

    def colours(self, raw: np.ndarray) -> np.ndarray:
        """Convert stored values (bands,h,w) to RGB uint8 (3,h,w), with the stretch of the whole raster."""
        if self.palette is not None:
            return self.palette[raw[0]].transpose(2, 0, 1)
        if len(raw) == 4:
            inks = Image.fromarray(np.ascontiguousarray(raw.transpose(1, 2, 0)), "CMYK")
            return np.ascontiguousarray(np.asarray(inks.convert("RGB")).transpose(2, 0, 1))
        if self.stretch is not None:
            raw = stretched(raw, self.stretch)
        elif self.scale != 1:
            raw = raw * np.uint8(self.scale)
        if self.inverted:
            raw = 255 - raw
        return np.repeat(raw, 3, axis=0) if len(raw) == 1 else np.ascontiguousarray(raw)

    def read(self, window: Window, shape: tuple[int, int], resampling=Resampling.nearest) -> np.ndarray:
        """Read stored values of a window.

        Args:
            window: in pixels of the file.
            shape: (h,w) to resample to.

        Returns:
            (bands,h,w).

        Raises:
            ImageError: the file is cut short or damaged there.
        """
        try:
            # A VRT may have bands of different types, which rasterio does not read together.
            same = len({self.file.dtypes[b - 1] for b in self.bands}) == 1
            parts = [
                self.file.read(
                    bands,
                    window=window,
                    out_shape=(len(bands), *shape),
                    resampling=resampling,
                    out_dtype=self.dtype,
                )
                for bands in ([self.bands] if same else [[band] for band in self.bands])
            ]
            return parts[0] if same else np.concatenate(parts)
        except Exception as error:  # GDAL raises many types of errors
            row = int(window.row_off)
            raise ImageError(
                f"{self.name} is cut short or damaged: rows {row} to {row + int(window.height)} cannot be read"
            ) from error

    def valid_of(self, window: Window, shape: tuple[int, int], raw: np.ndarray | None) -> np.ndarray:
        """Which pixels have data, bool (h,w). Pixels that are nodata, transparent, masked or not finite have none.

        Args:
            window, shape: see `read`.
            raw: the result of `read` for the same window; None if the values are integers.
        """
        try:
            masks = self.file.read_masks(self.bands, window=window, out_shape=(len(self.bands), *shape))
            valid = masks.any(axis=0)
            if self.alpha is not None:
                valid &= self.file.read(self.alpha, window=window, out_shape=shape) > 0
        except Exception as error:
            raise ImageError(f"{self.name} is cut short or damaged: its mask cannot be read") from error
        if raw is not None and raw.dtype.kind == "f":
            valid &= np.isfinite(raw).all(axis=0)
        if self.clear is not None:
            indices = self.read(window, shape) if raw is None else raw
            valid &= ~self.clear[indices[0]]
        return valid

    def _choose(self, bands: Sequence[int] | None) -> list[int]:
        """The indices of the bands that become RGB."""
        kinds, count = self.file.colorinterp, self.file.count
        if bands is None:
            usable = [i + 1 for i, kind in enumerate(kinds) if kind != ColorInterp.alpha]
            if all(kind in kinds for kind in _CMYK) and self.file.dtypes[0] == "uint8":
                bands = [kinds.index(kind) + 1 for kind in _CMYK]
            elif all(kind in kinds for kind in _RGB):
                bands = [kinds.index(kind) + 1 for kind in _RGB]
            else:
                bands = usable[:3] if len(usable) >= 3 else usable[:1] or [1]
            if len(bands) == 3 and len(usable) > 3:
                numbers = ", ".join(map(str, bands))
                self.notes.append(f"of {count} bands, bands {numbers} are used as red, green and blue")
        elif [b for b in bands if not 1 <= b <= count] or len(bands) not in (1, 3):
            raise ImageError(
                f"bands {','.join(map(str, bands))} of {self.name}: it has bands 1 to {count}; give three of them, or"
                " one"
            )
        if any(self.file.dtypes[b - 1].startswith("complex") for b in bands):
            raise ImageError(f"{self.name} has complex values ({self.file.dtypes[0]}): convert them to real ones")
        if len(bands) == 1 and kinds[bands[0] - 1] != ColorInterp.palette:
            self.notes.append(f"band {bands[0]} is used as red, green and blue")
        return list(bands)

    def _palette(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The palette of a single band, colors (N,3), or None; and which colors are transparent, bool (N,), or None."""
        if len(self.bands) != 1 or self.file.colorinterp[self.bands[0] - 1] != ColorInterp.palette:
            return None, None
        table = np.zeros((65536 if self.dtype.itemsize > 1 else 256, 4), np.uint8)
        table[:, 3] = 255
        for value, color in self.file.colormap(self.bands[0]).items():
            table[value] = color
        clear = table[:, 3] == 0
        return np.ascontiguousarray(table[:, :3]), clear if clear.any() else None

    def _grey_scale(self) -> tuple[int, bool]:
        """The factor for values of fewer than 8 bits, and whether 0 means white."""
        structure = self.file.tags(self.bands[0], ns="IMAGE_STRUCTURE")
        bits = int(structure.get("NBITS", 8))
        inverted = self.file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES" and self.palette is None
        return (255 // (2**bits - 1) if self.dtype == np.uint8 and bits < 8 and self.palette is None else 1), inverted

    def _extra_alpha(self) -> int | None:
        """Index of an alpha band that GDAL's mask ignores (after more than four bands, or not the last), or None."""
        alphas = [i + 1 for i, kind in enumerate(self.file.colorinterp) if kind == ColorInterp.alpha]
        in_mask = any(MaskFlags.alpha in self.file.mask_flag_enums[b - 1] for b in self.bands)
        return None if in_mask or not alphas or alphas[0] in self.bands else alphas[0]

    def _measure(self) -> tuple[float, float] | None:
        """The stretch, from the valid pixels of a reduced raster; None for 8-bit values, which are not stretched.

        Raises:
            ImageError: the raster has no valid pixel.
        """
        eight = self.palette is not None or self.dtype == np.uint8
        if eight and self.all_valid:
            return None
        values = self._sampled_in_strips() if self.file.driver in _ROW_BY_ROW else self._sampled()
        if values.size == 0:
            values = self._any_valid_values()
        if eight:
            return None
        low, high = stretch_of(values)
        self.notes.append(f"values of {self.dtype} from {low:g} to {high:g} are stretched to 0..255")
        return low, high

    def _sampled(self) -> np.ndarray:
        """Valid values of the raster, reduced to the size that `sample_shape` gives."""
        shape, window = sample_shape(self.size), Window(0, 0, self.size[1], self.size[0])
        raw = self.read(window, shape)
        return raw[:, self.valid_of(window, shape, raw)]

    def _sampled_in_strips(self) -> np.ndarray:
        """The same values as `_sampled`, read row by row for drivers without random access."""
        rows, cols = sample_indices(self.size)
        parts = []
        for strip in self.strips():
            here = rows[(rows >= strip.start) & (rows < strip.stop)] - strip.start
            if len(here):
                shape, window = (len(strip), self.size[1]), Window(0, strip.start, self.size[1], len(strip))
                raw = self.read(window, shape)
                valid = np.ones((len(here), len(cols)), bool)
                if not self.all_valid:
                    valid = self.valid_of(window, shape, raw)[here[:, None], cols]
                parts.append(raw[:, here[:, None], cols][:, valid])
        return np.concatenate(parts, axis=1)

    def _any_valid_values(self) -> np.ndarray:
        """Valid values from the first strip that has valid values, for rasters whose sample has none."""
        for strip in self.strips():
            shape, window = (len(strip), self.size[1]), Window(0, strip.start, self.size[1], len(strip))
            raw = self.read(window, shape)
            values = raw[:, self.valid_of(window, shape, raw)]
            if values.size:
                return values
        raise ImageError(f"{self.name} has no valid pixel: all of it is nodata, transparent or not finite")
