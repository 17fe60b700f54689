"""Tests of GeoJSON: valid after rounding, split at the antimeridian, correct at the poles, or else an error."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Geod, Transformer
from rasterio.transform import from_origin

from skysense_o.scenes.geojson import to_longitudes, write_geojson

GEOD = Geod(ellps="WGS84")


def staircase(transform, rows: int = 40) -> shapely.Polygon:
    """Return a polygon with one corner per pixel, which would touch itself after rounding."""
    corners = [(0, 0)]
    for k in range(rows):
        corners += [(k + 1, k), (k + 1, k + 1)]
    corners.append((0, rows))
    return shapely.Polygon([transform @ corner for corner in corners])


def read(table, path, pixel) -> geopandas.GeoDataFrame:
    write_geojson(table, path, pixel)
    return geopandas.read_file(path)


@pytest.mark.parametrize("side", [0.4, 0.02, 0.005, 0.001])
def test_polygons_of_fine_pixels_are_valid_and_keep_their_area(tmp_path, side):
    transform = from_origin(5e5, 49e5, side, side)
    one_pixel = shapely.box(*transform @ (60, 61), *transform @ (61, 60))
    table = geopandas.GeoDataFrame({"class_id": [1, 2]}, geometry=[staircase(transform), one_pixel], crs="EPSG:32612")
    back = read(table, tmp_path / "a.geojson", side)
    assert back.geometry.is_valid.all()
    areas = back.to_crs(32612).area
    np.testing.assert_allclose(areas, table.area, rtol=0.05)
    assert back.crs.to_epsg() == 4326


@pytest.mark.parametrize(
    ("crs", "centre"),
    [
        ("EPSG:3857", (20037508.34, 1e6)),
        ("EPSG:32601", (166000.0, 1e6)),
        ("EPSG:3832", (3339584.0, 1e6)),
        (4326, (180, 9)),
    ],
)
def test_polygons_across_the_antimeridian_are_cut(tmp_path, crs, centre):
    half = 1.0 if crs == 4326 else 60_000
    shape = shapely.box(centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
    table = geopandas.GeoDataFrame({"class_id": [0]}, geometry=[shape], crs=crs)
    back = read(table, tmp_path / "a.geojson", 10.0)
    (shape,) = back.geometry
    assert shape.is_valid
    assert len(shape.geoms) == 2
    assert (shape.bounds[0], shape.bounds[2]) == (-180, 180)
    assert all(part.bounds[2] - part.bounds[0] < 3 for part in shape.geoms), (
        "no part may stretch around the whole earth"
    )


def test_a_polygon_with_a_hole_across_the_antimeridian_keeps_it(tmp_path):
    shell, hole = shapely.box(178, 0, 182, 4), shapely.box(179, 1, 181, 3)
    table = geopandas.GeoDataFrame({"class_id": [0]}, geometry=[shell - hole], crs=4326)
    back = read(table, tmp_path / "a.geojson", None)
    assert back.geometry.is_valid.all()
    assert back.area.item() == pytest.approx(16 - 4)


@pytest.mark.parametrize(("crs", "sign"), [("EPSG:3413", 1), ("EPSG:3031", -1)])
def test_polygons_around_a_pole_hold_it(tmp_path, crs, sign):
    ring = shapely.box(-1e5, -1e5, 1e5, 1e5) - shapely.box(-5e4, -5e4, 5e4, 5e4)
    middle = shapely.box(-5e4, -5e4, 5e4, 5e4)
    side = shapely.box(2e5, 2e5, 3e5, 3e5)
    shapes = [shapely.segmentize(shape, 1000) for shape in (ring, middle, side)]
    table = geopandas.GeoDataFrame({"class_id": [0, 1, 2]}, geometry=shapes, crs=crs)
    back = read(table, tmp_path / "a.geojson", 100.0)
    assert back.geometry.is_valid.all()
    pole = shapely.Point(12, sign * 89.9999)
    assert back.contains(pole).tolist() == [False, True, False]
    truth = [abs(GEOD.geometry_area_perimeter(side_of(shape, crs))[0]) for shape in (middle, side)]
    for shape, area in zip(back.geometry[1:], truth):
        found = sum(abs(GEOD.geometry_area_perimeter(part)[0]) for part in shapely.get_parts(shape))
        assert found == pytest.approx(area, rel=0.01)


def side_of(shape: shapely.Polygon, crs) -> shapely.Polygon:
    """Return the shape in longitude and latitude, so that Geod computes its area even around a pole."""
    project = Transformer.from_crs(crs, 4326, always_xy=True)
    return shapely.transform(shape, lambda xy: np.stack(project.transform(xy[:, 0], xy[:, 1]), axis=1))


def test_a_place_without_longitude_is_an_error(tmp_path):
    table = geopandas.GeoDataFrame({"class_id": [0]}, geometry=[shapely.box(1e9, 1e9, 2e9, 2e9)], crs="EPSG:32612")
    with pytest.raises(ValueError, match="a.geojson needs longitudes, and the scene's CRS gives none here.*save gpkg"):
        write_geojson(table, tmp_path / "a.geojson")
    assert list(tmp_path.iterdir()) == []


NAMES = ["a!b", "x;y", 'it\'s "quoted"', "two\nlines", "50 % & <more>", "été, 水"]


def test_class_names_of_any_characters_come_back(tmp_path):
    from skysense_o.scenes.polygons import LAYER, write_geopackage

    shapes = [shapely.box(k, 0, k + 1, 1) for k in range(len(NAMES))]
    table = geopandas.GeoDataFrame({"class_name": NAMES}, geometry=shapes, crs=4326)
    folder = tmp_path / "x!y;z"
    write_geojson(table, folder / "a!b;c.geojson")
    write_geopackage(table, folder / "a!b;c.gpkg", NAMES, [(1, 2, 3)] * len(NAMES))
    assert {path.name for path in folder.iterdir()} == {"a!b;c.geojson", "a!b;c.gpkg"}
    for suffix, options in ((".geojson", {}), (".gpkg", {"layer": LAYER})):
        (folder / f"a!b;c{suffix}").rename(tmp_path / f"plain{suffix}")  # geopandas cannot read the original name
        assert geopandas.read_file(tmp_path / f"plain{suffix}", **options)["class_name"].tolist() == NAMES


def test_coordinates_are_rounded_to_the_decimals_given():
    box = np.array([shapely.box(10.123456789, 0, 11, 1)], object)
    (shape,) = to_longitudes(box, 4326, 7)
    assert shape.bounds[0] == 10.1234568


def test_the_same_polygons_give_the_same_geopackage(tmp_path):
    """Regression: a GeoPackage used to store the time of writing, so equal polygons gave different bytes."""
    import time

    from skysense_o.scenes.polygons import write_geopackage

    table = geopandas.GeoDataFrame({"class_name": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    for name in ("a.gpkg", "b.gpkg"):
        write_geopackage(table, tmp_path / name, ["a"], [(1, 2, 3)])
        time.sleep(0.01)
    assert (tmp_path / "a.gpkg").read_bytes() == (tmp_path / "b.gpkg").read_bytes()
