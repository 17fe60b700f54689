"""A raster through GDAL: which of its bands are shown, what is valid, and one stretch for all of it.

`Raster` of scenes stands on it, and so does `read_image` for whatever Pillow does not read in full: so a file looks the
same whoever opens it. Alphabet: H W pixels of the file as stored, h w those that are asked for.
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
from skysense_o.image_io.stretch import sample_places, sample_shape, stretch_of, stretched, strips

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_CMYK = (ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black)
_ROW_BY_ROW = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
"""Drivers that cannot jump within a file: a reduced image costs them all of it, once per band."""


class GDALImage:
    """An open raster: colours and validity of any part of it. Use it inside `gdal_settings`, in one thread."""

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
            path: a raster. bands: three numbers from 1, or one; where None those that the file names red, green and
                blue, else the first three, or the first. remote: see `open_dataset`. name: for messages.
                max_pixels: see `check_pixels`; any number by default, since a raster is read part by part.

        Raises:
            FileNotFoundError: no such file. ImageError: it cannot be read; no such bands; no valid pixel.
        """
        self.path, self.remote = Path(path), remote
        self.name = name or printable(self.path)
        self.file = open_dataset(self.path, remote)
        try:
            self.size: tuple[int, int] = self.file.shape
            check_pixels(self.name, self.size, max_pixels)
            self.notes: list[str] = []  # what a user should know of how the raster is shown to the model
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
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def strip(self, rows: range) -> tuple[np.ndarray, np.ndarray | None]:
        """Colours, uint8 (3,h,W), and validity, bool (h,W) or None, of whole rows as stored."""
        shape, window = (len(rows), self.size[1]), Window(0, rows.start, self.size[1], len(rows))
        raw = self.read(window, shape)
        return self.colours(raw), None if self.all_valid else self.valid_of(window, shape, raw)

    def strips(self) -> list[range]:
        """All rows, in ranges of few MiB that end where the file's own blocks do."""
        per_row = self.size[1] * len(self.bands) * max(4, self.dtype.itemsize)
        block = self.file.block_shapes[self.bands[0] - 1][0]
        return strips(self.size[0], per_row, block if block * per_row <= 2**26 else 1)

    def colours(self, raw: np.ndarray) -> np.ndarray:
        """(bands,h,w) of the raster's type -> uint8 (3,h,w), by the one stretch of the whole raster."""
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
        """(bands,h,w) of the raster's type.

        Raises:
            ImageError: cut short or damaged there.
        """
        try:
            return self.file.read(
                self.bands,
                window=window,
                out_shape=(len(self.bands), *shape),
                resampling=resampling,
                out_dtype=self.dtype,
            )
        except Exception as error:  # rasterio passes on GDAL's many
            row = int(window.row_off)
            raise ImageError(
                f"{self.name} is cut short or damaged: rows {row} to {row + int(window.height)} cannot be read"
            ) from error

    def valid_of(self, window: Window, shape: tuple[int, int], raw: np.ndarray | None) -> np.ndarray:
        """bool (h,w): neither nodata, transparent, masked nor, by `raw`, not finite. raw: as `read`, or None."""
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
        """Which bands are shown."""
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
                shown = ", ".join(map(str, bands))
                self.notes.append(f"of {count} bands those numbered {shown} are shown as red, green and blue")
        elif [b for b in bands if not 1 <= b <= count] or len(bands) not in (1, 3):
            raise ImageError(
                f"bands {','.join(map(str, bands))} of {self.name}: it has bands 1 to {count}; give three of them, or"
                " one"
            )
        if any(self.file.dtypes[b - 1].startswith("complex") for b in bands):
            raise ImageError(f"{self.name} has complex numbers ({self.file.dtypes[0]}): give it real ones")
        if len(bands) == 1 and kinds[bands[0] - 1] != ColorInterp.palette:
            self.notes.append(f"band {bands[0]} is shown to the model as red, green and blue alike")
        return list(bands)

    def _palette(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Colours (N,3) of the only band where it has a palette, and bool (N,), which of them are transparent."""
        if len(self.bands) != 1 or self.file.colorinterp[self.bands[0] - 1] != ColorInterp.palette:
            return None, None
        table = np.zeros((65536 if self.dtype.itemsize > 1 else 256, 4), np.uint8)
        table[:, 3] = 255
        for value, color in self.file.colormap(self.bands[0]).items():
            table[value] = color
        clear = table[:, 3] == 0
        return np.ascontiguousarray(table[:, :3]), clear if clear.any() else None

    def _grey_scale(self) -> tuple[int, bool]:
        """By how much values of fewer than 8 bits are multiplied, and whether 0 is white."""
        facts = self.file.tags(self.bands[0], ns="IMAGE_STRUCTURE")
        bits = int(facts.get("NBITS", 8))
        inverted = self.file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES" and self.palette is None
        return (255 // (2**bits - 1) if self.dtype == np.uint8 and bits < 8 and self.palette is None else 1), inverted

    def _extra_alpha(self) -> int | None:
        """An alpha band that GDAL's own mask does not heed: behind more than four bands, or not the last."""
        alphas = [i + 1 for i, kind in enumerate(self.file.colorinterp) if kind == ColorInterp.alpha]
        heeded = any(MaskFlags.alpha in self.file.mask_flag_enums[b - 1] for b in self.bands)
        return None if heeded or not alphas or alphas[0] in self.bands else alphas[0]

    def _measure(self) -> tuple[float, float] | None:
        """The stretch, of all valid pixels of a reduced raster; None for 8 bits, which are taken as they are."""
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
        shape, window = sample_shape(self.size), Window(0, 0, self.size[1], self.size[0])
        raw = self.read(window, shape)
        return raw[:, self.valid_of(window, shape, raw)]

    def _sampled_in_strips(self) -> np.ndarray:
        rows, cols = sample_places(self.size)
        parts = []
        for strip in self.strips():
            here = rows[(rows >= strip.start) & (rows < strip.stop)] - strip.start
            if len(here):
                shape, window = (len(strip), self.size[1]), Window(0, strip.start, self.size[1], len(strip))
                raw = self.read(window, shape)
                picked = np.ones((len(here), len(cols)), bool)
                if not self.all_valid:
                    picked = self.valid_of(window, shape, raw)[here[:, None], cols]
                parts.append(raw[:, here[:, None], cols][:, picked])
        return np.concatenate(parts, axis=1)

    def _any_valid_values(self) -> np.ndarray:
        """Where the reduced raster shows nothing valid, all of it is looked through, strip by strip."""
        for strip in self.strips():
            shape, window = (len(strip), self.size[1]), Window(0, strip.start, self.size[1], len(strip))
            raw = self.read(window, shape)
            values = raw[:, self.valid_of(window, shape, raw)]
            if values.size:
                return values
        raise ImageError(f"{self.name} has no valid pixel: all of it is nodata, transparent or not finite")
