"""Georeferenced rasters of any size, read piece by piece. Alphabet: H W the raster's own pixels, h w those that the
model sees (other than H W where it is resampled to another ground sampling distance).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import geopandas
import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import geometry_mask
from rasterio.transform import Affine
from rasterio.windows import Window

from skysense_o.inference.images import STRETCH_PERCENTILES, ImageError
from skysense_o.scenes.pixel_area import PixelAreas

OVERVIEW = 1024
"""Longest side of the reduced raster that the stretch is measured on."""


class Raster:
    """An open raster: colours for the model, validity and place for the result.

    Not for two threads at once: open it twice.
    """

    def __init__(
        self,
        path: str | Path,
        bands: Sequence[int] | None = None,
        gsd: float | None = None,
        aoi: str | Path | None = None,
    ) -> None:
        """
        Args:
            path: whatever GDAL reads. bands: three numbers from 1, or one; where None the first three, or the only one.
            gsd: metres a pixel that the model shall see; the raster's own where None.
            aoi: vector file; only what lies inside is valid.

        Raises:
            FileNotFoundError: no raster, no area. ImageError: unreadable, no such bands, a kind that is not read.
            ValueError: gsd or area for a raster that has no place on the ground; an area that is empty or elsewhere.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no image at {str(path)!r}")
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # images without a place are welcome
        try:
            self.file = rasterio.open(self.path)
        except RasterioError as error:
            raise ImageError(f"{self.path} is not a raster that can be read ({error})") from error
        self.size: tuple[int, int] = self.file.shape
        self.notes: list[str] = []  # what a user should know of how the raster is shown to the model
        self.bands, self.palette = self._choose(bands)
        self.areas = PixelAreas(self.file.crs, self.file.transform, self.size)
        self.seen = self._resampled(gsd)
        self.shapes = self._area_of_interest(aoi) if aoi else None
        float_or_masked = self.file.dtypes[0].startswith("float") or any(
            MaskFlags.all_valid not in self.file.mask_flag_enums[b - 1] for b in self.bands
        )
        self.all_valid = not float_or_masked and self.shapes is None
        self.stretch: tuple[float, float] | None = self._measure()

    def again(self) -> Raster:
        """The same raster opened once more, for another thread."""
        other = copy(self)
        other.file = rasterio.open(self.path)
        return other

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def pixels(self, rows: range, cols: range, fill: Sequence[float]) -> np.ndarray:
        """uint8 (3,h,w) of pixels that the model sees; what is not valid has the colour `fill`."""
        (fy, fx), shape = self._scale(), (len(rows), len(cols))
        window = Window(cols.start * fx, rows.start * fy, len(cols) * fx, len(rows) * fy)
        smooth = Resampling.average if fy > 1 else Resampling.bilinear
        raw = self._read(window, shape, Resampling.nearest if self.palette is not None else smooth)
        colours = self.colours(raw)
        if not self.all_valid:
            invalid = ~self._valid(window, shape, raw)
            for channel, value in zip(colours, fill):
                channel[invalid] = round(value)
        return colours

    def valid(self, rows: range, cols: range) -> np.ndarray:
        """bool (H,W) of the raster's own pixels: neither nodata, transparent, masked, infinite nor outside the area."""
        if self.all_valid:
            return np.ones((len(rows), len(cols)), bool)
        window, shape = Window(cols.start, rows.start, len(cols), len(rows)), (len(rows), len(cols))
        floating = self.file.dtypes[0].startswith("float")
        return self._valid(window, shape, self._read(window, shape) if floating else None)

    def thumbnail(self, shape: tuple[int, int]) -> np.ndarray:
        """uint8 (3,h,w) of the whole raster, reduced; invalid pixels are white."""
        window = Window(0, 0, self.size[1], self.size[0])
        raw = self._read(window, shape)
        colours = self.colours(raw)
        colours[:, ~self._valid(window, shape, raw)] = 255
        return colours

    def colours(self, raw: np.ndarray) -> np.ndarray:
        """(bands,h,w) of the raster's type -> uint8 (3,h,w), by the one stretch of the whole raster."""
        if self.palette is not None:
            raw = self.palette[raw[0]].transpose(2, 0, 1)
        elif self.stretch is not None:
            low, high = self.stretch
            raw = np.nan_to_num(raw.astype(np.float32, copy=False), nan=low, posinf=high, neginf=low)
            raw = np.clip((raw - low) * (255.0 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
        return np.repeat(raw, 3, axis=0) if len(raw) == 1 else np.ascontiguousarray(raw)

    def _read(self, window: Window, shape: tuple[int, int], resampling=Resampling.nearest) -> np.ndarray:
        try:
            return self.file.read(self.bands, window=window, out_shape=(len(self.bands), *shape), resampling=resampling)
        except RasterioError as error:
            row = int(window.row_off)
            raise ImageError(
                f"{self.path} is cut short or damaged: rows {row} to {row + int(window.height)} cannot be read"
            ) from error

    def _valid(self, window: Window, shape: tuple[int, int], raw: np.ndarray | None) -> np.ndarray:
        try:
            masks = self.file.read_masks(self.bands, window=window, out_shape=(len(self.bands), *shape))
        except RasterioError as error:
            raise ImageError(f"{self.path} is cut short or damaged: its mask cannot be read") from error
        valid = masks.any(axis=0)
        if raw is not None and raw.dtype.kind == "f":
            valid &= np.isfinite(raw).all(axis=0)
        if self.shapes is not None:
            place = self.file.transform @ Affine.translation(window.col_off, window.row_off)
            place = place @ Affine.scale(window.width / shape[1], window.height / shape[0])
            valid &= geometry_mask(self.shapes, shape, place, invert=True)
        return valid

    def _scale(self) -> tuple[float, float]:
        return self.size[0] / self.seen[0], self.size[1] / self.seen[1]

    def _choose(self, bands: Sequence[int] | None) -> tuple[list[int], np.ndarray | None]:
        """Which bands, and the colours of the only one where it has a palette."""
        kinds = self.file.colorinterp
        if self.file.dtypes[0].startswith("complex"):
            raise ImageError(f"{self.path} has complex numbers ({self.file.dtypes[0]}): give it real ones")
        usable = [i + 1 for i, kind in enumerate(kinds) if kind != ColorInterp.alpha]
        if bands is None:
            bands = usable[:3] if len(usable) >= 3 else usable[:1]
        wrong = [b for b in bands if not 1 <= b <= self.file.count]
        if wrong or len(bands) not in (1, 3):
            raise ImageError(
                f"bands {','.join(map(str, bands))} of {self.path}: it has bands 1 to {self.file.count}; give three of"
                " them, or one"
            )
        if len(bands) == 1 and kinds[bands[0] - 1] == ColorInterp.palette:
            table = np.zeros((256, 3), np.uint8)
            for value, color in self.file.colormap(bands[0]).items():
                table[value] = color[:3]
            return list(bands), table
        if len(bands) == 1:
            self.notes.append(f"band {bands[0]} is shown to the model as red, green and blue alike")
        return list(bands), None

    def _resampled(self, gsd: float | None) -> tuple[int, int]:
        if gsd is None:
            return self.size
        if not (np.isfinite(gsd) and gsd > 0):
            raise ValueError(f"--gsd {gsd} is out of range: metres a pixel, above 0")
        if self.areas.gsd is None:
            raise ValueError(f"{self.path} has no CRS and transform, so metres a pixel mean nothing: leave out --gsd")
        return tuple(max(1, round(n * self.areas.gsd / gsd)) for n in self.size)

    def _area_of_interest(self, path: str | Path) -> list:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no area of interest at {str(path)!r}")
        if self.file.crs is None or self.file.transform.is_identity:
            raise ValueError(f"{self.path} has no CRS and transform, so the area {path} has no place in it")
        try:
            table = geopandas.read_file(path)
        except Exception as error:  # pyogrio and GDAL have many
            reason = str(error).split(";")[0]
            raise ValueError(f"{path} is no vector file that can be read ({reason}): give GeoJSON or GPKG") from error
        if "geometry" not in table or table.geometry.is_empty.all() or not table.geometry.notna().any():
            raise ValueError(f"the area of interest {path} is empty: draw at least one polygon")
        if table.crs is None:
            raise ValueError(f"the area of interest {path} has no CRS: give it one")
        shapes = [s for s in table.to_crs(self.file.crs.to_wkt()).geometry if s is not None and s.area > 0]
        if not shapes:
            raise ValueError(f"the area of interest {path} has no polygon with an area")
        ring = [self.file.transform @ p for p in ((0, 0), (self.size[1], 0), self.size[::-1], (0, self.size[0]))]
        from shapely.geometry import Polygon

        if not any(shape.intersects(Polygon(ring)) for shape in shapes):
            raise ValueError(f"the area of interest {path} does not touch {self.path}")
        return shapes

    def _measure(self) -> tuple[float, float] | None:
        """Percentiles of all valid pixels of a reduced raster; None for 8 bits, which are taken as they are."""
        shape = tuple(max(1, min(n, round(n * OVERVIEW / max(*self.size, OVERVIEW)))) for n in self.size)
        window = Window(0, 0, self.size[1], self.size[0])
        raw = self._read(window, shape)
        shapes, self.shapes = self.shapes, None  # one stretch for the raster, whatever part of it is asked for
        try:
            values = raw[:, self._valid(window, shape, raw)]
            if values.size == 0:
                values = self._any_valid_values()
        finally:
            self.shapes = shapes
        if self.palette is not None or raw.dtype == np.uint8:
            return None
        low, high = (float(v) for v in np.percentile(values.astype(np.float64), STRETCH_PERCENTILES))
        self.notes.append(f"values of {raw.dtype} from {low:g} to {high:g} are stretched to 0..255")
        return low, high

    def _any_valid_values(self) -> np.ndarray:
        """Where the reduced raster shows nothing valid, all of it is looked through, block by block."""
        for _, window in self.file.block_windows(self.bands[0]):
            shape = (window.height, window.width)
            raw = self._read(window, shape)
            values = raw[:, self._valid(window, shape, raw)]
            if values.size:
                return values
        raise ImageError(f"{self.path} has no valid pixel: all of it is nodata, transparent or not finite")
