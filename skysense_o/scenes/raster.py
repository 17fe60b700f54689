"""Georeferenced rasters of any size, read window by window.

Shape letters: H W pixels of the raster, h w pixels as the model sees them. H W and h w are equal unless the raster is
resampled to another ground sampling distance.
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
    """An open raster. It gives the model RGB pixels, and the result its valid pixels and its georeference.

    Use it inside `gdal_settings`, as a context manager, and in one thread; other threads use `reopened()`.

    Attributes:
        size: (H,W). model_size: (h,w), the size that the model sees.
        bands, stretch, notes: which bands are used, how their values are converted to 8 bits, and remarks for the user.
        areas: the area of each pixel on the ground.

    >>> from skysense_o.image_io import gdal_settings
    >>> with gdal_settings(), Raster("demo/foz_30m.tif") as raster:
    ...     rgb, valid = raster.pixels(range(64), range(96), (0, 0, 0)), raster.valid(range(64), range(96))
    >>> raster.size, rgb.shape, valid.shape, round(raster.areas.gsd)
    ((280, 300), (3, 64, 96), (64, 96), 30)
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
            path, bands, remote: see `GDALImage`.
            gsd: ground sampling distance to resample to for the model, in metres per pixel; None for the raster's own.
            aoi: vector file; pixels outside its polygons are not valid.

        Raises:
            FileNotFoundError: the raster or the area of interest does not exist.
            ImageError: the raster cannot be read, or has no such bands.
            ValueError: gsd or aoi is given, but the location of the raster on the ground is unknown; or the area of
                interest is empty or does not touch the raster.
        """
        self.shapes: list | None = None  # set after the stretch, which must not depend on the area of interest
        super().__init__(path, bands, remote=remote)
        try:
            if self.stretch is None and self.all_valid:
                self._sampled()  # find damaged files before a model is loaded
            self.areas = PixelAreas(self.file.crs, self.file.transform, self.size)
            self.model_size = self._resampled(gsd)
            self.shapes = self._area_of_interest(aoi) if aoi else None
        except BaseException:
            self.close()
            raise
        self.all_valid = self.all_valid and self.shapes is None

    def reopened(self) -> Raster:
        """Open the same raster once more, for another thread."""
        other = copy(self)
        other.file = open_dataset(self.path, self.remote)
        return other

    def pixels(self, rows: range, cols: range, fill: Sequence[float]) -> np.ndarray:
        """Read RGB pixels as the model sees them.

        Args:
            rows, cols: ranges of pixels, in the size `model_size`.
            fill: RGB, 0..255, for pixels that are not valid.

        Returns:
            uint8 (3,rows,cols).
        """
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
        """Which pixels of the raster have data.

        A pixel is not valid if it is nodata, transparent, masked, not finite, or outside the area of interest.

        Args:
            rows, cols: ranges of pixels, in the raster's own size.

        Returns:
            bool (rows,cols).
        """
        if self.all_valid:
            return np.ones((len(rows), len(cols)), bool)
        window, shape = Window(cols.start, rows.start, len(cols), len(rows)), (len(rows), len(cols))
        return self.valid_of(window, shape, self.read(window, shape) if self.dtype.kind == "f" else None)

    def thumbnail(self, shape: tuple[int, int]) -> np.ndarray:
        """The whole raster, reduced to `shape` (h,w): uint8 (3,h,w). Invalid pixels are white."""
        window = Window(0, 0, self.size[1], self.size[0])
        raw = self.read(window, shape)
        colours = self.colours(raw)
        colours[:, ~self.valid_of(window, shape, raw)] = 255
        return colours

    def valid_of(self, window: Window, shape: tuple[int, int], raw: np.ndarray | None) -> np.ndarray:
        """As `GDALImage.valid_of`, but pixels outside the area of interest are not valid either."""
        valid = super().valid_of(window, shape, raw)
        if self.shapes is not None:
            transform = self.file.transform @ Affine.translation(window.col_off, window.row_off)
            transform = transform @ Affine.scale(window.width / shape[1], window.height / shape[0])
            valid &= geometry_mask(self.shapes, shape, transform, invert=True)
        return valid

    def _scale(self) -> tuple[float, float]:
        """Pixels of the raster per pixel that the model sees, down and across."""
        return self.size[0] / self.model_size[0], self.size[1] / self.model_size[1]

    def _resampled(self, gsd: float | None) -> tuple[int, int]:
        """(h,w) of the raster at a ground sampling distance."""
        if gsd is None:
            return self.size
        if not (np.isfinite(gsd) and gsd > 0):
            raise ValueError(f"--gsd {gsd} is out of range: metres per pixel, above 0")
        if not self.areas.known:
            raise ValueError(f"{self.name}: {GROUND_UNKNOWN}, so it cannot be resampled: leave out --gsd")
        return tuple(max(1, round(n * self.areas.gsd / gsd)) for n in self.size)

    def _area_of_interest(self, path: str | Path) -> list:
        """The polygons of a vector file, in the CRS of the raster."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no area of interest at {str(path)!r}")
        if not self.areas.known:
            raise ValueError(f"{self.name}: {GROUND_UNKNOWN}, so --aoi {path} cannot be located in it: leave out --aoi")
        try:
            # pyogrio takes "!" and ";" in names for addresses inside archives
            source = BytesIO(Path(path).read_bytes()) if {"!", ";"} & set(str(path)) else path
            table = geopandas.read_file(source)
        except Exception as error:  # pyogrio and GDAL raise many types of errors
            reason = str(error).split(";")[0]
            raise ValueError(f"{path} is not a readable vector file ({reason}): give GeoJSON or GeoPackage") from error
        if "geometry" not in table or table.geometry.is_empty.all() or not table.geometry.notna().any():
            raise ValueError(f"the area of interest {path} is empty: draw at least one polygon")
        if table.crs is None:
            raise ValueError(f"the area of interest {path} has no CRS: save it with one")
        shapes = [s for s in table.to_crs(self.file.crs.to_wkt()).geometry if s is not None and s.area > 0]
        if not shapes:
            raise ValueError(f"the area of interest {path} has no polygon with an area")
        ring = [self.file.transform @ p for p in ((0, 0), (self.size[1], 0), self.size[::-1], (0, self.size[0]))]
        from shapely.geometry import Polygon

        if not any(shape.intersects(Polygon(ring)) for shape in shapes):
            raise ValueError(f"the area of interest {path} does not touch {self.path}")
        return shapes
