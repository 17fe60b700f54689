"""How much ground a pixel covers: metres along a side, square metres by place."""

from __future__ import annotations

import numpy as np
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.transform import Affine

LATTICE = 33
"""Places along each side of a scene where the area of a pixel is computed; between them it is interpolated."""


GROUND_UNKNOWN = "its place on the ground is not known (it needs a geographic or projected CRS, and a transform)"


def ground_known(crs, transform: Affine) -> bool:
    """Whether pixels have a place on the ground: a geographic or projected CRS, and a transform into it.

    A local or engineering CRS, or a CRS without a transform, is none. Areas in square metres, GeoJSON, an area of
    interest and --gsd all ask this. crs: rasterio's, or None.
    """
    if not crs or transform.is_identity or not transform.determinant:
        return False
    try:
        known = CRS.from_wkt(crs.to_wkt())
    except CRSError:
        return False
    return known.is_geographic or known.is_projected


class PixelAreas:
    """Square metres of a pixel anywhere in a scene: geodesic where the CRS counts in degrees, else by its unit.

    known: see `ground_known`; where False, areas are in pixels.
    """

    def __init__(self, crs, transform: Affine, size: tuple[int, int]) -> None:
        """crs: rasterio's, or None. transform: pixel to CRS. size: (H,W)."""
        self.size, self.lattice, self.constant = size, None, 1.0
        self.known = ground_known(crs, transform)
        if not self.known:
            return
        crs = CRS.from_wkt(crs.to_wkt())
        if crs.is_projected:
            self.constant = abs(transform.determinant) * crs.axis_info[0].unit_conversion_factor ** 2
            return
        rows, cols = (np.linspace(0, n - 1, LATTICE) for n in size)
        geod = crs.get_geod()
        self.lattice = np.array([[_geodesic(geod, transform, row, col) for col in cols] for row in rows])

    def at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Areas of the pixels at these places, rows and columns counted from 0."""
        if self.lattice is None:
            return np.full(np.shape(rows), self.constant)
        place = [np.asarray(p) * ((LATTICE - 1) / max(1, n - 1)) for p, n in zip((rows, cols), self.size)]
        (y, fy), (x, fx) = ((np.minimum(p.astype(int), LATTICE - 2), p) for p in place)
        fy, fx, table = fy - y, fx - x, self.lattice
        above = table[y, x] * (1 - fx) + table[y, x + 1] * fx
        below = table[y + 1, x] * (1 - fx) + table[y + 1, x + 1] * fx
        return above * (1 - fy) + below * fy

    @property
    def gsd(self) -> float | None:
        """Metres a pixel in the middle of the scene, or None where it is not known."""
        middle = self.at(np.array([self.size[0] // 2]), np.array([self.size[1] // 2]))
        return float(np.sqrt(middle[0])) if self.known else None


def _geodesic(geod, transform: Affine, row: float, col: float) -> float:
    corners = [transform @ (col + x, row + y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
    return abs(geod.polygon_area_perimeter(*zip(*corners))[0])
