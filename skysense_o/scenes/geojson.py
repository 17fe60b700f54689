"""Polygons in longitude and latitude as GeoJSON permits them: valid after rounding, cut at the antimeridian."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import shapely
from pyproj import Transformer
from pyproj.exceptions import ProjError

from skysense_o.whole_files import whole

LAYER = "regions"
LEAST_DECIMALS = 7
"""Decimals of a degree that RFC 7946 recommends: about 1 cm."""
MOST_DECIMALS = 12
METRES_PER_DEGREE = 111_320


def write_geojson(table: geopandas.GeoDataFrame, path: Path, pixel: float | None = None) -> None:
    """Write GeoJSON as RFC 7946 requires: longitude and latitude of WGS 84, right-hand rule, cut at the antimeridian.

    Args:
        table: polygons with their CRS.
        path: the file to write.
        pixel: side of a pixel in metres; pixels smaller than a few centimetres get more than 7 decimals.

    Raises:
        ValueError: the polygons have no CRS, or cannot be transformed to longitude and latitude.
    """
    if table.crs is None:
        raise ValueError(f"{path.name} needs longitudes, and the scene has no CRS: save gpkg or coco")
    decimals = LEAST_DECIMALS
    if pixel:
        # The side of a pixel is at least 100 units of the last decimal.
        decimals = math.ceil(-math.log10(pixel / METRES_PER_DEGREE)) + 2
    decimals = min(max(decimals, LEAST_DECIMALS), MOST_DECIMALS)
    try:
        geometry = to_longitudes(np.asarray(table.geometry.values), table.crs, decimals)
    except (ProjError, ValueError, shapely.errors.GEOSException) as error:
        raise ValueError(
            f"{path.name} needs longitudes, and the scene's CRS gives none here ({error}): save gpkg or coco"
        ) from error
    table = geopandas.GeoDataFrame(table.drop(columns="geometry"), geometry=list(geometry), crs=4326)
    with whole(path) as part, plain_name(part) as target:
        pyogrio.write_dataframe(
            table, target, driver="GeoJSON", geometry_type="Unknown", layer=LAYER, RFC7946="YES",
            COORDINATE_PRECISION=str(decimals),
        )  # fmt: skip


@contextmanager
def plain_name(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary path for pyogrio, which misreads `!` and `;` in names as addresses inside archives.

    Args:
        path: the file to write.
        suffix: the suffix that the driver expects, because GDAL warns of any other suffix.
    """
    if {"!", ";"} & set(str(path)):
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"vectors{suffix}"
            yield target
            shutil.copyfile(target, path)
    elif suffix:
        target = path.with_name(path.name + suffix)
        try:
            target.unlink(missing_ok=True)
            yield target
            target.replace(path)
        finally:
            target.unlink(missing_ok=True)
    else:
        yield path


def to_longitudes(geometry: np.ndarray, crs, decimals: int) -> np.ndarray:
    """Reproject polygons to WGS 84.

    Args:
        geometry: N polygons.
        crs: their CRS.
        decimals: number of decimals to which coordinates are rounded.

    Returns:
        N polygons or multi-polygons in longitude -180..180 and latitude, valid as rounded.

    Raises:
        ValueError: a coordinate cannot be converted to longitude and latitude.
    """
    project = Transformer.from_crs(crs, 4326, always_xy=True)
    moved = shapely.transform(geometry, lambda xy: np.stack(project.transform(xy[:, 0], xy[:, 1]), axis=1))
    xy, owner = shapely.get_coordinates(moved, return_index=True)
    if not np.isfinite(xy).all():
        raise ValueError("some pixels are beyond the area in which it is defined")
    jumps = (np.abs(np.diff(xy[:, 0])) > 180) & (owner[1:] == owner[:-1])
    across = np.unique(np.concatenate([owner[1:][jumps], owner[np.abs(xy[:, 0]) > 180]]))
    for k in across:
        moved[k] = _wrapped(moved[k])
    step = 10.0**-decimals
    rounded = shapely.set_precision(shapely.make_valid(moved, method="structure", keep_collapsed=False), step)
    return np.array([_areas_of(shape) for shape in rounded], object)


def _areas_of(shape: shapely.Geometry) -> shapely.Geometry:
    """The polygons of a shape, without the lines and points that `make_valid` may have left."""
    if not isinstance(shape, shapely.GeometryCollection) or isinstance(shape, shapely.MultiPolygon):
        return shape
    return shapely.union_all([part for part in shape.geoms if part.area > 0])


def _wrapped(polygon: shapely.Polygon) -> shapely.Geometry:
    """Cut a polygon that crosses the antimeridian or holds a pole into parts between -180 and 180 degrees."""
    shell, *holes = (_ring_within(np.asarray(ring.coords)) for ring in (polygon.exterior, *polygon.interiors))
    return shapely.difference(shell, shapely.union_all(holes)) if holes else shell


def _ring_within(ring: np.ndarray) -> shapely.Geometry:
    """The area inside a ring (N,2) of longitudes and latitudes, cut into parts between -180 and 180 degrees."""
    longitude = np.unwrap(ring[:, 0], period=360)
    points = np.stack([longitude, ring[:, 1]], axis=1)
    if abs(longitude[-1] - longitude[0]) > 180:  # around a pole: close the ring along it
        pole = math.copysign(90, ring[:, 1].mean())
        points = np.concatenate([points, [[longitude[-1], pole], [longitude[0], pole]]])
    area = shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False)
    west, _, east, _ = area.bounds
    parts = []
    for turn in range(math.floor((west + 180) / 360), math.floor((east + 180) / 360) + 1):
        part = shapely.intersection(area, shapely.box(turn * 360 - 180, -90, turn * 360 + 180, 90))
        parts.append(shapely.transform(part, lambda xy, turn=turn: xy - (turn * 360, 0)))
    return shapely.union_all(parts)
