"""Tests of reading rasters: bands, valid pixels, one stretch per raster, resampling, area of interest."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("rasterio", reason='pip install -e ".[geo]"')
import rasterio
from made_scenes import UTM, fields, write_scene
from pyproj import Geod, Transformer
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from rasterio.warp import transform_geom

from skysense_o.image_io import ImageError
from skysense_o.scenes.check import check_formats
from skysense_o.scenes.pixel_area import PixelAreas, ground_known
from skysense_o.scenes.raster import Raster

FILL = (100, 110, 120)


def read_all(raster: Raster) -> np.ndarray:
    return raster.pixels(range(raster.model_size[0]), range(raster.model_size[1]), FILL)


def test_8_bit_values_are_not_changed_and_bands_can_be_chosen(tmp_path):
    pixels = np.concatenate([fields(50, 70), fields(50, 70, 1)[:1]])
    path = write_scene(tmp_path / "s.tif", pixels)
    with Raster(path) as raster:
        assert np.array_equal(read_all(raster), pixels[:3])
        assert raster.valid(range(50), range(70)).all()
        assert raster.areas.gsd == 2
    with Raster(path, (4, 3, 2)) as raster:
        assert np.array_equal(read_all(raster), pixels[[3, 2, 1]])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_16_bit_values_have_one_stretch_for_the_whole_raster(tmp_path, dtype):
    """Every window of a 16-bit raster is stretched with the same limits, so one stored value has one colour."""
    values = np.linspace(0, 20000, 3 * 64 * 900).reshape(3, 64, 900).transpose(0, 2, 1).astype(dtype)
    path = write_scene(tmp_path / "s.tif", values)
    with Raster(path) as raster:
        together = read_all(raster)
        pieces = [raster.pixels(range(r, r + 100), range(64), FILL) for r in range(0, 900, 100)]
    assert np.array_equal(np.concatenate(pieces, axis=1), together)
    low, high = np.percentile(values, (2, 98))
    expected = np.clip((values.astype(float) - low) / (high - low) * 255, 0, 255)
    assert np.abs(together - expected).max() <= 2


def test_nodata_alpha_and_internal_masks_are_not_valid(tmp_path):
    pixels, hole = fields(40, 60), (slice(None), slice(5, 20), slice(10, 30))
    valid = np.ones((40, 60), bool)
    valid[hole[1:]] = False
    holed = pixels.copy()
    holed[hole] = 0
    nodata = write_scene(tmp_path / "nodata.tif", holed, nodata=0)
    four = np.concatenate([pixels, valid[None] * np.uint8(255)])
    alpha = write_scene(tmp_path / "alpha.tif", four, photometric="RGB", alpha="YES")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        masked = write_scene(tmp_path / "mask.tif", pixels)
        with rasterio.open(masked, "r+") as file:
            file.write_mask(valid)
    for path in (nodata, alpha, masked):
        with Raster(path) as raster:
            assert len(raster.bands) == 3, path
            assert np.array_equal(raster.valid(range(40), range(60)), valid), path
            rgb = read_all(raster)
            assert np.array_equal(rgb[:, valid], pixels[:, valid]), path
            assert (rgb[:, ~valid] == np.array(FILL)[:, None]).all(), path


def test_nan_and_infinity_are_not_valid(tmp_path):
    values = fields(40, 60).astype("float32") * 7
    values[0, 3, 4], values[1, 5, 6], values[2, 7, 8] = np.nan, np.inf, -np.inf
    with Raster(write_scene(tmp_path / "s.tif", values)) as raster:
        valid = raster.valid(range(40), range(60))
        assert sorted(zip(*np.nonzero(~valid))) == [(3, 4), (5, 6), (7, 8)]
        assert read_all(raster)[:, 5, 6].tolist() == list(FILL)
        assert raster.stretch[1] < 255 * 7 + 1


def test_bands_of_different_types_are_read_together(tmp_path):
    """A VRT whose bands have different types, as gdalbuildvrt -separate makes, is read like a raster of one type."""
    pixels = fields(40, 50)
    types = (("Byte", np.uint8), ("UInt16", np.uint16), ("Float32", np.float32))
    bands = ""
    for number, (name, dtype) in enumerate(types, 1):
        write_scene(tmp_path / f"{number}.tif", pixels[number - 1 : number].astype(dtype))
        bands += (
            f"<VRTRasterBand dataType='{name}' band='{number}'><SimpleSource>"
            f"<SourceFilename relativeToVRT='1'>{number}.tif</SourceFilename><SourceBand>1</SourceBand>"
            "</SimpleSource></VRTRasterBand>"
        )
    (tmp_path / "s.vrt").write_text(f"<VRTDataset rasterXSize='50' rasterYSize='40'>{bands}</VRTDataset>")
    write_scene(tmp_path / "s.tif", pixels.astype(np.float32))
    with Raster(tmp_path / "s.vrt") as mixed, Raster(tmp_path / "s.tif") as same:
        assert mixed.dtype == np.float32
        both = [raster.pixels(range(40), range(50), (0, 0, 0)) for raster in (mixed, same)]
    assert np.array_equal(*both)


def test_one_band_becomes_grey_with_a_note(tmp_path):
    path = write_scene(tmp_path / "s.tif", fields(40, 60)[:1])
    with Raster(path) as raster:
        rgb = read_all(raster)
    assert np.array_equal(rgb[0], rgb[2])
    assert raster.notes == ["band 1 is used as red, green and blue"]


def test_palettes_become_rgb(tmp_path):
    ids = (fields(40, 60)[:1] > 128).astype(np.uint8)
    path = write_scene(tmp_path / "s.tif", ids, photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30, 255), 1: (200, 100, 50, 255)})
        assert file.colorinterp == (ColorInterp.palette,)
    with Raster(path) as raster:
        assert np.array_equal(read_all(raster)[:, ids[0] == 1][:, 0], [200, 100, 50])


def test_the_model_sees_the_requested_gsd_and_windows_agree(tmp_path):
    pixels = fields(100, 120)
    path = write_scene(tmp_path / "s.tif", pixels)
    with Raster(path, gsd=4) as raster:
        assert raster.model_size == (50, 60)
        means = pixels.reshape(3, 50, 2, 60, 2).astype(float).mean(axis=(2, 4))
        together = read_all(raster)
        assert np.abs(together - means).max() <= 1
        piece = raster.pixels(range(10, 30), range(7, 50), FILL)
        assert np.array_equal(piece, together[:, 10:30, 7:50])
    with Raster(path, gsd=1) as raster:
        assert raster.model_size == (200, 240)


def area(tmp_path, *rings, name="area.geojson"):
    """Write rings, given in pixels of a UTM scene, as GeoJSON polygons in longitude and latitude."""
    shapes = []
    for ring in rings:
        points = [UTM["transform"] @ p for p in ring]
        shapes.append(transform_geom(UTM["crs"], "EPSG:4326", {"type": "Polygon", "coordinates": [points]}))
    features = [{"type": "Feature", "properties": {}, "geometry": shape} for shape in shapes]
    path = tmp_path / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_only_pixels_inside_the_area_of_interest_are_valid(tmp_path):
    path = write_scene(tmp_path / "s.tif", fields(100, 120))
    square = area(tmp_path, [(20, 10), (60, 10), (60, 50), (20, 50), (20, 10)])
    with Raster(path, aoi=square) as raster:
        valid = raster.valid(range(100), range(120))
        assert valid[11:49, 21:59].all()
        assert abs(int(valid.sum()) - 1600) < 100
        part = raster.valid(range(30, 70), range(40, 100))
        assert np.array_equal(part, valid[30:70, 40:100])


def test_pixels_in_degrees_have_geodesic_areas(tmp_path):
    degree = Affine(0.001, 0, 10, 0, -0.001, 60.05)
    with Raster(write_scene(tmp_path / "s.tif", fields(100, 120), crs="EPSG:4326", transform=degree)) as raster:
        # At latitude 60, a degree of latitude is 111.41 km and a degree of longitude 55.80 km.
        assert raster.areas.at(np.array([50]), np.array([60]))[0] == pytest.approx(111.41 * 55.80, rel=1e-3)
        assert raster.areas.at(np.array([0]), np.array([0]))[0] < raster.areas.at(np.array([99]), np.array([0]))[0]


def test_areas_in_feet_become_square_metres(tmp_path):
    new_york = {"crs": "EPSG:2263", "transform": Affine(2, 0, 1e6, 0, -2, 2e5)}
    with Raster(write_scene(tmp_path / "s.tif", fields(40, 50), **new_york)) as raster:
        assert raster.areas.gsd == pytest.approx(2 * 0.3048, rel=1e-4)


@pytest.mark.parametrize(
    ("crs", "origin", "side", "in_plane"),
    [
        ("EPSG:3857", (1e6, 7e6), 10, 2.77),
        ("EPSG:3413", (1e5, 1e5), 100, 0.94),
        ("+proj=geos +h=35785831 +lon_0=0 +sweep=y", (-1e6, 1e6), 3000, 0.96),
        ("EPSG:4807", (5, 50), 1e-4, None),  # longitudes in grads, counted from Paris
        ("EPSG:32612", (5e5, 49e5), 10, 1.0),
    ],
)
def test_areas_are_those_on_the_ground_in_every_projection(crs, origin, side, in_plane):
    """Regression: areas were 2.8 times too large in Web Mercator at 53 degrees, and grads were taken as degrees."""
    grid = Affine(side, 0, origin[0], 0, -side, origin[1])
    areas = PixelAreas(rasterio.crs.CRS.from_user_input(crs), grid, (40, 60))
    corners = np.array([grid @ corner for corner in ((30, 20), (31, 20), (31, 21), (30, 21))])
    degrees = Transformer.from_crs(crs, 4326, always_xy=True).transform(*corners.T)
    truth = abs(Geod(ellps="WGS84").polygon_area_perimeter(*degrees)[0])
    found = areas.at(np.array([20]), np.array([30])).item()
    assert found == pytest.approx(truth, rel=1e-3)
    assert areas.gsd == pytest.approx(truth**0.5, rel=1e-3)
    if in_plane is not None:
        assert side**2 / truth == pytest.approx(in_plane, rel=0.01)


def test_beyond_its_projection_a_pixel_has_its_area_in_the_plane():
    """A corner of a satellite image of the whole earth's disc shows no earth; there, areas are those in the plane."""
    crs = rasterio.crs.CRS.from_user_input("+proj=geos +h=35785831 +lon_0=0 +sweep=y")
    areas = PixelAreas(crs, Affine(3e5, 0, -6e6, 0, -3e5, 6e6), (40, 40))
    assert areas.at(np.array([0]), np.array([0])).item() == 3e5**2
    assert areas.at(np.array([20]), np.array([20])).item() == pytest.approx(3e5**2, rel=0.02)


def test_an_image_of_the_whole_earth_has_larger_pixels_near_its_edge():
    """Regression: all pixels used to get the area of the central ones, as most checked points lie off the earth."""
    crs = rasterio.crs.CRS.from_user_input("+proj=geos +h=35785831 +lon_0=0 +sweep=y")
    grid = Affine(3e4, 0, -6e6, 0, -3e4, 6e6)
    areas = PixelAreas(crs, grid, (400, 400))
    corners = np.array([grid @ corner for corner in ((320, 200), (321, 200), (321, 201), (320, 201))])
    degrees = Transformer.from_crs(crs, 4326, always_xy=True).transform(*corners.T)
    truth = abs(Geod(ellps="WGS84").polygon_area_perimeter(*degrees)[0])
    assert truth > 1.4 * 3e4**2
    assert areas.at(np.array([200]), np.array([320])).item() == pytest.approx(truth, rel=0.05)


LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'


@pytest.mark.parametrize(
    ("georeference", "known"),
    [
        ({}, True),
        ({"crs": "EPSG:4326", "transform": Affine(0.001, 0, 10, 0, -0.001, 60)}, True),
        ({"transform": None}, False),
        ({"crs": None}, False),
        ({"crs": LOCAL}, False),
        ({"crs": "EPSG:4978"}, False),
        ({"crs": "EPSG:4326", "transform": Affine(0.1, 0, 10, 0, -0.1, 100)}, False),
        ({"crs": "EPSG:4326"}, False),
        ({"crs": "EPSG:4326", "transform": Affine(9, 0, -180, 0, -0.1, 0)}, False),
        ({"crs": "EPSG:4326", "transform": Affine(7.2, 0, -183.6, 0, -4.5, 92.25)}, True),
        ({"transform": Affine(float("nan"), 0, 1, 0, -1, 1)}, False),
    ],
    ids=[
        "utm",
        "degrees",
        "crs without transform",
        "transform without crs",
        "local",
        "geocentric",
        "past the pole",
        "metres as degrees",
        "more than once around",
        "pixels centered on the poles",
        "not a number",
    ],
)
def test_area_geojson_aoi_and_gsd_need_a_location_on_the_ground(tmp_path, georeference, known):
    """GeoJSON output and an area of interest need a known location on the ground; without it, both raise an error."""
    path = write_scene(tmp_path / "s.tif", fields(40, 50), **georeference)
    near = area(tmp_path, [(0, 0), (9, 0), (9, 9), (0, 0)])
    with Raster(path) as raster:
        assert ground_known(raster.file.crs, raster.file.transform, raster.size) == known
        assert raster.areas.known == known
        assert (raster.areas.gsd is None) != known
        if known:
            check_formats(["geojson"], raster)
            return
        with pytest.raises(ValueError, match="its location on the ground is unknown.*GeoJSON needs longitudes"):
            check_formats(["geojson"], raster)
        check_formats(["gpkg", "areas"], raster)
    with pytest.raises(ValueError, match="its location on the ground is unknown.*cannot be located in it"):
        Raster(path, aoi=near)
    with pytest.raises(ValueError, match="its location on the ground is unknown.*leave out --gsd"):
        Raster(path, gsd=4)


def test_each_kind_of_bad_raster_has_its_own_error(tmp_path):
    good = write_scene(tmp_path / "good.tif", fields(300, 400))
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "cut.tif").write_bytes(good.read_bytes()[:200_000])
    empty = write_scene(tmp_path / "empty.tif", np.zeros((3, 40, 50), np.uint8), nodata=0)
    nan = write_scene(tmp_path / "nan.tif", np.full((3, 40, 50), np.nan, "float32"))
    waves = write_scene(tmp_path / "complex.tif", np.zeros((1, 40, 50), "complex64"))
    nowhere = write_scene(tmp_path / "nowhere.tif", fields(40, 50), crs=None, transform=None)
    far = area(tmp_path, [(9000, 9000), (9100, 9000), (9100, 9100), (9000, 9000)], name="far.geojson")
    nothing = area(tmp_path, name="nothing.geojson")
    (tmp_path / "no.geojson").write_text("{")
    near = area(tmp_path, [(0, 0), (9, 0), (9, 9), (0, 0)], name="near.geojson")
    for path, options, error, says in (
        (tmp_path / "absent.tif", {}, FileNotFoundError, "no image at"),
        (tmp_path / "text.tif", {}, ImageError, "is not a raster that can be read"),
        (tmp_path / "cut.tif", {}, ImageError, "cut short or damaged"),
        (empty, {}, ImageError, "has no valid pixel"),
        (nan, {}, ImageError, "has no valid pixel"),
        (waves, {}, ImageError, "complex values"),
        (good, {"bands": (4, 3, 2)}, ImageError, "it has bands 1 to 3"),
        (good, {"bands": (1, 2)}, ImageError, "give three of them, or one"),
        (good, {"gsd": 0}, ValueError, "--gsd 0 is out of range"),
        (nowhere, {"gsd": 1}, ValueError, "its location on the ground is unknown.*leave out --gsd"),
        (nowhere, {"aoi": near}, ValueError, "its location on the ground is unknown.*so --aoi"),
        (good, {"aoi": tmp_path / "absent.geojson"}, FileNotFoundError, "no area of interest at"),
        (good, {"aoi": nothing}, ValueError, "is empty"),
        (good, {"aoi": tmp_path / "no.geojson"}, ValueError, "is not a readable vector file"),
        (good, {"aoi": far}, ValueError, "does not touch"),
    ):
        with pytest.raises(error, match=says):
            Raster(path, **options)


def test_a_valid_corner_that_the_reduced_raster_misses_is_found(tmp_path):
    pixels = np.zeros((3, 2100, 2100), np.uint8)
    pixels[:, 2099, 2098] = 9
    with Raster(
        write_scene(tmp_path / "s.tif", pixels, nodata=0, tiled=True, blockxsize=512, blockysize=512)
    ) as raster:
        assert raster.valid(range(2090, 2100), range(2090, 2100)).sum() == 1
