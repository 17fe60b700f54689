"""The area of a pixel on the ground, in square metres, and its side, in metres."""

from __future__ import annotations

import numpy as np
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from rasterio.transform import Affine

DISTORTION = 0.01
"""Areas are measured in the plane of a projection if they differ from those on the ellipsoid by at most this share."""
LATTICE = 33
"""The area is computed at LATTICE x LATTICE points of a scene, and interpolated between them."""
GROUND_UNKNOWN = (
    "its location on the ground is unknown (this needs a CRS and a transform: gdal_translate -a_srs -a_ullr)"
)


def ground_known(crs, transform: Affine, size: tuple[int, int]) -> bool:
    """Whether the location of pixels on the ground is known: a geographic or projected CRS, and a transform into it.

    It is unknown with a local or engineering CRS, without a transform, or where degrees are not on the globe. Areas in
    square metres, GeoJSON, areas of interest and --gsd depend on it.

    Args:
        crs: a CRS of rasterio, or None.
        transform: the transform from pixels to the CRS.
        size: (H,W) in pixels.

    >>> from rasterio.crs import CRS
    >>> utm, degrees, grid = CRS.from_epsg(32633), CRS.from_epsg(4326), Affine(2, 0, 5e5, 0, -2, 5e6)
    >>> ground_known(utm, grid, (9, 9)), ground_known(None, grid, (9, 9)), ground_known(degrees, grid, (9, 9))
    (True, False, False)
    """
    if not crs or transform.is_identity or not np.isfinite(transform).all() or not transform.determinant:
        return False
    try:
        known = CRS.from_wkt(crs.to_wkt())
    except CRSError:
        return False
    if not known.is_geographic:
        return known.is_projected
    unit = _degrees_of(known)
    corners = np.array([transform @ corner for corner in ((0, 0), (size[1], 0), (0, size[0]), size[::-1])]) * unit
    longitudes, latitudes = corners.T
    # If the centers of the outer pixels lie on a pole, the grid reaches past the pole: accept one pixel more.
    pixel = unit * sum(map(abs, transform[:6]), -abs(transform.c) - abs(transform.f))
    return bool(max(map(abs, latitudes)) <= 90 + pixel and max(longitudes) - min(longitudes) <= 360 + pixel)


class PixelAreas:
    """The area of each pixel of a scene in square metres.

    In a geographic CRS this is the area on the ellipsoid. In a projected CRS it is the area in the plane, or on the
    ellipsoid where the two differ by more than DISTORTION (Web Mercator: 2.8 times at 53 degrees north).

    Attributes:
        known: see `ground_known`; if False, areas are in pixels.
    """

    def __init__(self, crs, transform: Affine, size: tuple[int, int]) -> None:
        """
        Args:
            crs: a CRS of rasterio, or None.
            transform: the transform from pixels to the CRS.
            size: (H,W) of the scene.
        """
        self.size, self.lattice, self.constant = size, None, 1.0
        self.known = ground_known(crs, transform, size)
        if not self.known:
            return
        crs = CRS.from_wkt(crs.to_wkt())
        if crs.is_projected:
            self.constant = abs(transform.determinant) * crs.axis_info[0].unit_conversion_factor ** 2
            few = _geodesic(crs, transform, size, 3)
            if (abs(few / self.constant - 1) <= DISTORTION).all():  # NaN areas compare as False
                return
        areas = _geodesic(crs, transform, size, LATTICE)
        # Areas are NaN outside the domain of the projection.
        self.lattice = np.where(np.isfinite(areas), areas, self.constant)

    def at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Areas of the pixels at these rows and columns, which count from 0 and may be fractions."""
        if self.lattice is None:
            return np.full(np.shape(rows), self.constant)
        positions = [np.asarray(p) * ((LATTICE - 1) / max(1, n - 1)) for p, n in zip((rows, cols), self.size)]
        (y, fy), (x, fx) = ((np.minimum(p.astype(int), LATTICE - 2), p) for p in positions)
        fy, fx, table = fy - y, fx - x, self.lattice
        above = table[y, x] * (1 - fx) + table[y, x + 1] * fx
        below = table[y + 1, x] * (1 - fx) + table[y + 1, x + 1] * fx
        return above * (1 - fy) + below * fy

    @property
    def gsd(self) -> float | None:
        """Ground sampling distance in the middle of the scene, in metres per pixel; None where it is unknown."""
        middle = self.at(np.array([self.size[0] // 2]), np.array([self.size[1] // 2]))
        return float(np.sqrt(middle[0])) if self.known else None


def _degrees_of(crs: CRS) -> float:
    """Degrees per unit of a geographic CRS, whose unit may be grads (EPSG:4807)."""
    return round(np.degrees(crs.axis_info[0].unit_conversion_factor), 12)


def _geodesic(crs: CRS, transform: Affine, size: tuple[int, int], count: int) -> np.ndarray:
    """Geodesic areas of count x count pixels of a scene, evenly spaced, in square metres; not finite where unknown."""
    rows, cols = np.meshgrid(*(np.linspace(0, n - 1, count) for n in size), indexing="ij")
    corners = [transform @ (cols + x, rows + y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
    x, y = (np.stack(values, axis=-1) for values in zip(*corners))
    if crs.is_projected:
        globe = crs.geodetic_crs
        x, y = Transformer.from_crs(crs, globe, always_xy=True).transform(x, y)
        crs = globe
    longitudes, latitudes = x * _degrees_of(crs), np.clip(y * _degrees_of(crs), -90, 90)
    geod, areas = crs.get_geod(), np.full(rows.shape, np.nan)
    for at in zip(*np.nonzero(np.isfinite(longitudes + latitudes).all(axis=-1))):
        areas[at] = abs(geod.polygon_area_perimeter(longitudes[at], latitudes[at])[0])
    return areas
