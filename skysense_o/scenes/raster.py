"""Georeferenced rasters of any size, read piece by piece. Alphabet: H W the raster's own pixels, h w those that the
model sees (other than H W where it is resampled to another ground sampling distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from io import BytesIO
from pathlib import Path

import geopandas
import numpy as np
from rasterio.enums import Resampling
from rasterio.features import geometry_mask
from rasterio.transform import Affine
from rasterio.windows import Window

from skysense_o.image_io.gdal_access import open_dataset
from skysense_o.image_io.gdal_image import GDALImage
from skysense_o.scenes.pixel_area import GROUND_UNKNOWN, PixelAreas


class Raster(GDALImage):
    """An open raster: colours for the model, validity and place for the result.

    Not for two threads at once: open it twice.
    """

    def __init__(
        self,
        path: str | Path,
        bands: Sequence[int] | None = None,
        gsd: float | None = None,
        aoi: str | Path | None = None,
        remote: bool = False,
    ) -> None:
        """
        Args:
            path, bands, remote: see `GDALImage`. gsd: metres a pixel that the model shall see; the raster's own where
                None.
            aoi: vector file; only what lies inside is valid.

        Raises:
            FileNotFoundError: no raster, no area. ImageError: unreadable, no such bands, a kind that is not read.
            ValueError: gsd or area for a raster that has no place on the ground; an area that is empty or elsewhere.
        """
        self.shapes: list | None = None  # one stretch for the raster, whatever part of it is asked for
        super().__init__(path, bands, remote=remote)
        try:
            if self.stretch is None and self.all_valid:
                self._sampled()  # a damaged file is told before anything is loaded for it
            self.areas = PixelAreas(self.file.crs, self.file.transform, self.size)
            self.seen = self._resampled(gsd)
            self.shapes = self._area_of_interest(aoi) if aoi else None
        except BaseException:
            self.close()
            raise
        self.all_valid = self.all_valid and self.shapes is None

    def again(self) -> Raster:
        """The same raster opened once more, for another thread."""
        other = copy(self)
        other.file = open_dataset(self.path, self.remote)
        return other

    def pixels(self, rows: range, cols: range, fill: Sequence[float]) -> np.ndarray:
        """uint8 (3,h,w) of pixels that the model sees; what is not valid has the colour `fill`."""
        (fy, fx), shape = self._scale(), (len(rows), len(cols))
        window = Window(cols.start * fx, rows.start * fy, len(cols) * fx, len(rows) * fy)
        smooth = Resampling.average if fy > 1 else Resampling.bilinear
        raw = self.read(window, shape, Resampling.nearest if self.palette is not None else smooth)
        colours = self.colours(raw)
        if not self.all_valid:
            invalid = ~self.valid_of(window, shape, raw)
            for channel, value in zip(colours, fill):
                channel[invalid] = round(value)
        return colours

    def valid(self, rows: range, cols: range) -> np.ndarray:
        """bool (H,W) of the raster's own pixels: neither nodata, transparent, masked, infinite nor outside the area."""
        if self.all_valid:
            return np.ones((len(rows), len(cols)), bool)
        window, shape = Window(cols.start, rows.start, len(cols), len(rows)), (len(rows), len(cols))
        return self.valid_of(window, shape, self.read(window, shape) if self.dtype.kind == "f" else None)

    def thumbnail(self, shape: tuple[int, int]) -> np.ndarray:
        """uint8 (3,h,w) of the whole raster, reduced; invalid pixels are white."""
        window = Window(0, 0, self.size[1], self.size[0])
        raw = self.read(window, shape)
        colours = self.colours(raw)
        colours[:, ~self.valid_of(window, shape, raw)] = 255
        return colours

    def valid_of(self, window: Window, shape: tuple[int, int], raw: np.ndarray | None) -> np.ndarray:
        """bool (h,w), as `GDALImage` has it, and inside the area of interest."""
        valid = super().valid_of(window, shape, raw)
        if self.shapes is not None:
            place = self.file.transform @ Affine.translation(window.col_off, window.row_off)
            place = place @ Affine.scale(window.width / shape[1], window.height / shape[0])
            valid &= geometry_mask(self.shapes, shape, place, invert=True)
        return valid

    def _scale(self) -> tuple[float, float]:
        return self.size[0] / self.seen[0], self.size[1] / self.seen[1]

    def _resampled(self, gsd: float | None) -> tuple[int, int]:
        if gsd is None:
            return self.size
        if not (np.isfinite(gsd) and gsd > 0):
            raise ValueError(f"--gsd {gsd} is out of range: metres a pixel, above 0")
        if not self.areas.known:
            raise ValueError(f"{self.name}: {GROUND_UNKNOWN}, so metres a pixel mean nothing: leave out --gsd")
        return tuple(max(1, round(n * self.areas.gsd / gsd)) for n in self.size)

    def _area_of_interest(self, path: str | Path) -> list:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no area of interest at {str(path)!r}")
        if not self.areas.known:
            raise ValueError(f"{self.name}: {GROUND_UNKNOWN}, so the area {path} has no place in it")
        try:
            # pyogrio takes "!" and ";" in names for addresses inside archives
            source = BytesIO(Path(path).read_bytes()) if {"!", ";"} & set(str(path)) else path
            table = geopandas.read_file(source)
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
