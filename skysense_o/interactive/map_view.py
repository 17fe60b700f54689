"""A scene in Web Mercator: tiles of its pixels, label maps on its grid, and conversion of positions to pixels and back.

Shape letters: H W pixels of the scene, h w pixels of the Web Mercator grid that results are shown on.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine, from_bounds
from rasterio.warp import calculate_default_transform, reproject, transform, transform_bounds
from rasterio.windows import Window

from skysense_o.image_io import gdal_settings
from skysense_o.scenes.raster import Raster

MERCATOR = CRS.from_epsg(3857)
DEGREES = CRS.from_epsg(4326)
EDGE = 20037508.342789244
"""Half the side of the square that Web Mercator maps the world to, in metres of Web Mercator."""
TILE = 256
MOST_PIXELS = 8_000_000
"""Largest number of pixels of the grid on which results are shown; a larger grid is made coarser."""
LATTICE = 9
"""Points per side of the lattice from which the browser interpolates the pointer's coordinates."""


class MapView:
    """A scene as the map shows it.

    A tile reads its own window only, from the file's overviews where the map is zoomed out. Its values are
    stretched like the whole scene, so the map shows what the model sees; a library for tiles (rio-tiler) would stretch
    in its own way, and open files without our checks.

    Attributes:
        shape: (h,w). bounds: ((south, west), (north, east)) in degrees. native_zoom: zoom level of full detail.
    """

    def __init__(self, path: Path, full: Path | None = None) -> None:
        """
        Args:
            path: a scene whose location on the ground is known; results have its size.
            full: the same scene with more pixels, from which the tiles are read.

        Raises:
            ValueError: the scene cannot be shown in Web Mercator, which ends at 85 degrees, or parts of it lie
                outside its projection's domain.
        """
        self._lock = threading.Lock()
        with gdal_settings():
            with Raster(path) as results:
                self.gsd = results.areas.gsd
                try:
                    self._place(results)
                    self._table = self._coordinates()
                except (RasterioError, CPLE_BaseError) as error:  # part of the scene has no coordinates in it
                    raise ValueError(f"its projection cannot be shown on this map ({error})") from error
            self.raster = Raster(full or path)
        finer = math.sqrt(math.prod(self.raster.size) / math.prod(results.size))
        resolution = abs(self.grid.a) / finer
        self.native_zoom = min(24, max(0, math.ceil(math.log2(2 * EDGE / TILE / resolution))))

    def _place(self, raster: Raster) -> None:
        height, width = raster.size
        self.crs, self.affine = raster.file.crs, raster.file.transform
        corners = raster.file.bounds
        self.middle = (corners.left + corners.right) / 2
        south_north = transform_bounds(self.crs, DEGREES, *corners)[1::2]
        if not all(math.isfinite(v) and abs(v) < 85 for v in south_north):
            raise ValueError("scenes beyond 85 degrees north or south have no place on this map")
        grid, columns, rows = calculate_default_transform(self.crs, MERCATOR, width, height, *corners)
        coarser = max(1.0, math.sqrt(columns * rows / MOST_PIXELS))
        self.shape = max(1, round(rows / coarser)), max(1, round(columns / coarser))
        self.grid = grid @ Affine.scale(columns / self.shape[1], rows / self.shape[0])
        left, top = self.grid @ (0, 0)
        right, bottom = self.grid @ (self.shape[1], self.shape[0])
        if right - left > 1.5 * EDGE:
            raise ValueError("scenes that reach around the earth have no place on this map")
        west, south, east, north = transform_bounds(MERCATOR, DEGREES, left, bottom, right, top)
        self.bounds = (south, west), (north, east)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.raster.close()

    def described(self) -> dict:
        """Description of the map as JSON for the browser."""
        return {
            "bounds": self.bounds,
            "shape": self.shape,
            "native_zoom": self.native_zoom,
            "gsd": self.gsd,
            "crs": self.crs.to_string() if len(self.crs.to_string()) < 40 else "CRS of the file",
            "units": "m" if self.crs.is_projected else "degrees",
            "lattice": self._table,
        }

    def _coordinates(self) -> list[list[list[float]]]:
        """The coordinates of LATTICE x LATTICE points of the grid, in the scene's CRS and in degrees."""
        y, x = np.meshgrid(*(np.linspace(0, n, LATTICE) for n in self.shape), indexing="ij")
        table = [transform(MERCATOR, crs, *self.grid @ (x.ravel(), y.ravel())) for crs in (self.crs, DEGREES)]
        return [np.round(np.stack(columns, 1), 7).tolist() for columns in table]

    def _near(self, x: np.ndarray) -> np.ndarray:
        """Longitudes in the scene's range, which may be 0 to 360 in place of -180 to 180; other x are unchanged."""
        if not self.crs.is_geographic:
            return x
        return x + 360 * np.round((self.middle - x) / 360)

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """(x, y) of the grid -> (x, y) of the scene, both in pixels."""
        (x,), (y,) = transform(MERCATOR, self.crs, *([v] for v in self.grid @ (x, y)))
        return ~self.affine @ (float(self._near(np.float64(x))), y)

    def places(self, xy: np.ndarray) -> np.ndarray:
        """(N,2) x,y in pixels of the scene -> (N,2) of the grid."""
        x, y = self.affine @ (xy[:, 0], xy[:, 1])
        x = np.where(x > 180, x - 360, x) if self.crs.is_geographic else x
        columns, rows = transform(self.crs, MERCATOR, x, y)
        return np.stack(~self.grid @ (np.asarray(columns), np.asarray(rows)), axis=1)

    def warp(self, values: np.ndarray, outside: int) -> np.ndarray:
        """uint8 (H,W) of the scene -> (h,w) of the grid, without interpolation."""
        warped = np.full(self.shape, outside, np.uint8)
        reproject(
            values, warped, src_transform=self.affine, src_crs=self.crs, dst_transform=self.grid, dst_crs=MERCATOR,
            resampling=Resampling.nearest, init_dest_nodata=False,
        )  # fmt: skip
        return warped

    def tile(self, zoom: int, column: int, row: int) -> np.ndarray | None:
        """One tile: uint8 (256,256,4) RGBA; None where the scene has no pixel.

        Raises:
            ValueError: zoom, column or row is out of range.
        """
        if not (0 <= zoom <= 30 and 0 <= column < 2**zoom and 0 <= row < 2**zoom):
            raise ValueError(f"tile {zoom}/{column}/{row} is out of range")
        side = 2 * EDGE / 2**zoom
        left, top = column * side - EDGE, EDGE - row * side
        window = self._window(left, top - side, left + side, top)
        if window is None:
            return None
        reduced = max(1.0, max(window.width, window.height) / (2 * TILE))
        shape = max(1, round(window.height / reduced)), max(1, round(window.width / reduced))
        plain = self.raster.palette is not None
        with self._lock, gdal_settings():
            raw = self.raster.read(window, shape, Resampling.nearest if plain or reduced == 1 else Resampling.average)
            valid = self.raster.valid_of(window, shape, raw)
            source = np.concatenate([self.raster.colours(raw), valid[None].astype(np.uint8) * 255])
        affine = self.raster.file.transform @ Affine.translation(window.col_off, window.row_off)
        affine = affine @ Affine.scale(window.width / shape[1], window.height / shape[0])
        out = np.zeros((4, TILE, TILE), np.uint8)
        for bands, way in ((slice(3), Resampling.nearest if plain else Resampling.bilinear), (3, Resampling.nearest)):
            reproject(
                source[bands], out[bands], src_transform=affine, src_crs=self.crs, dst_crs=MERCATOR, resampling=way,
                dst_transform=from_bounds(left, top - side, left + side, top, TILE, TILE),
            )  # fmt: skip
        return np.ascontiguousarray(out.transpose(1, 2, 0)) if out[3].any() else None

    def _window(self, *box: float) -> Window | None:
        """The pixels of the scene in a box of Web Mercator, or None."""
        left, bottom, right, top = transform_bounds(MERCATOR, self.crs, *box, densify_pts=9)
        x, y = ~self.raster.file.transform @ (
            self._near(np.array([left, right, right, left])),
            np.array([bottom, bottom, top, top]),
        )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return None
        (height, width), margin = self.raster.size, 2
        x0, x1 = np.clip([math.floor(x.min()) - margin, math.ceil(x.max()) + margin], 0, width)
        y0, y1 = np.clip([math.floor(y.min()) - margin, math.ceil(y.max()) + margin], 0, height)
        return Window(int(x0), int(y0), int(x1 - x0), int(y1 - y0)) if x0 < x1 and y0 < y1 else None
