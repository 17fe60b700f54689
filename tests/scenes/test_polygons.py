"""Tests that regions of a label map, as polygons, run-length masks and boxes, equal those of naive implementations."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pytest

pytest.importorskip("rasterio", reason='pip install -e ".[geo]"')
import geopandas
import rasterio
import shapely
from made_scenes import UTM, fields
from pycocotools import mask
from rasterio.transform import Affine
from scipy import ndimage

from skysense_o.scenes import polygons as vectors
from skysense_o.scenes import regions as regions_module
from skysense_o.scenes.coco import coco_boxes, coco_dataset
from skysense_o.scenes.geojson import write_geojson
from skysense_o.scenes.label_store import SCORE_STEPS
from skysense_o.scenes.pixel_area import PixelAreas
from skysense_o.scenes.polygons import polygons, write_geopackage
from skysense_o.scenes.regions import find_regions

NAMES, COLORS = ("none", "red", "green & <blue>"), ((9, 9, 9), (255, 0, 0), (0, 255, 99))
CRS = rasterio.crs.CRS.from_epsg(32633)


def speckled(height=90, width=70, seed=0):
    """Return labels 0, 1, 2 and 255 in patches with salt-and-pepper noise, and random scores."""
    rng = np.random.default_rng(seed)
    labels = (fields(height, width, seed).argmax(0)).astype(np.uint8)
    noise = rng.random(labels.shape)
    labels[noise < 0.1] = 2
    labels[noise > 0.95] = 255
    return labels, rng.integers(0, SCORE_STEPS + 1, labels.shape, dtype=np.uint8)


def find(labels, score, folder, band=16, transform=UTM["transform"], crs=CRS, **options):
    size = labels.shape
    wanted = np.zeros(256, bool)
    wanted[1:3] = True
    arrays = {"labels": labels, "score": score}
    bands = [range(r, min(r + band, size[0])) for r in range(0, size[0], band)]
    read = lambda name, rows: arrays[name][rows.start : rows.stop]  # noqa: E731
    areas = PixelAreas(crs, transform, size)
    return find_regions(read, bands, size, wanted, areas, folder / "regions.tif", **options)


@pytest.mark.parametrize("band", [1, 16, 1000])
def test_regions_across_bands_equal_those_of_the_whole(tmp_path, band):
    labels, score = speckled()
    regions = find(labels, score, tmp_path, band)
    with rasterio.open(regions.path) as file:
        numbers = file.read(1)
    assert ((numbers > 0) == np.isin(labels, (1, 2))).all()
    total = 0
    for value in (1, 2):
        parts, n = ndimage.label(labels == value)
        total += n
        for part in range(1, n + 1):
            inside = parts == part
            number = np.unique(numbers[inside])
            assert len(number) == 1
            i = number[0] - 1
            assert regions.label[i] == value
            assert regions.pixels[i] == inside.sum()
            assert regions.area[i] == pytest.approx(4 * inside.sum())
            assert regions.score[i] == pytest.approx(score[inside].mean() / SCORE_STEPS)
            y, x = np.nonzero(inside)
            assert regions.boxes[i].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert len(regions) == total


def test_a_spiral_is_one_region(tmp_path):
    """A spiral is found as one region, although it crosses the borders between bands many times in both directions."""
    labels = np.zeros((41, 41), np.uint8)
    y = x = 20
    dy, dx, length = 0, 1, 2
    while 0 < length < 40:
        for _ in range(length):
            labels[y, x] = 1
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
        length += 2 if dy == 0 else 0
        if not (0 <= y < 41 and 0 <= x < 41):
            break
    regions = find(labels, np.full_like(labels, 100), tmp_path, 4)
    assert len(regions) == ndimage.label(labels == 1)[1] == 1


def test_polygons_cover_their_pixels_and_have_class_score_and_area(tmp_path):
    labels, score = speckled()
    regions = find(labels, score, tmp_path)
    table = polygons(regions, NAMES, UTM["transform"], CRS, "s.tif")
    assert np.allclose(table.geometry.area, table.area_m2)
    assert set(table.class_name) == {"red", "green & <blue>"}
    assert (table.source == "s.tif").all()
    burnt = rasterio.features.rasterize(
        zip(table.geometry, table.class_id), labels.shape, fill=0, transform=UTM["transform"], dtype="uint8"
    )
    assert np.array_equal(burnt, np.where(np.isin(labels, (1, 2)), labels, 0))


def test_small_regions_are_left_out_and_simplified_neighbors_still_touch(tmp_path):
    labels, score = speckled(seed=3)
    few = find(labels, score, tmp_path, min_area=40.0)
    assert few.area.min() >= 40
    assert 0 < len(few) < len(find(labels, score, tmp_path))
    few = find(labels, score, tmp_path, min_area=40.0)
    exact, plain = (polygons(few, NAMES, UTM["transform"], CRS, "s", simplify=s) for s in (0, 2.0))
    assert (
        shapely.get_num_coordinates(plain.geometry.values).sum()
        < shapely.get_num_coordinates(exact.geometry.values).sum()
    )
    assert plain.area_m2.tolist() == exact.area_m2.tolist()
    overlaps = shapely.coverage_is_valid(plain.geometry.values)
    assert overlaps


def test_geopackage_has_the_crs_and_a_style_for_qgis(tmp_path):
    labels, score = speckled()
    table = polygons(find(labels, score, tmp_path), NAMES, UTM["transform"], CRS, "s.tif")
    write_geopackage(table, tmp_path / "s.gpkg", NAMES, COLORS)
    back = geopandas.read_file(tmp_path / "s.gpkg", layer="regions")
    assert back.crs == CRS
    assert back.area_m2.sum() == pytest.approx(4 * np.isin(labels, (1, 2)).sum())
    with sqlite3.connect(tmp_path / "s.gpkg") as base:
        # QGIS 3.22 does not read styles from a table without the column update_time.
        query = "select f_table_name, styleQML, useAsDefault, update_time from layer_styles order by update_time"
        name, style, default, changed = base.execute(query).fetchone()
    assert (name, bool(default), changed[:4]) == ("regions", True, "2000")
    assert 'label="green &amp; &lt;blue&gt;"' in style
    assert 'value="0,255,99,255"' in style
    import xml.dom.minidom

    xml.dom.minidom.parseString(style)


def test_geojson_follows_rfc_7946(tmp_path):
    labels, score = speckled()
    table = polygons(find(labels, score, tmp_path), NAMES, UTM["transform"], CRS, "s.tif")
    write_geojson(table, tmp_path / "s.geojson")
    body = json.loads((tmp_path / "s.geojson").read_text())
    assert "crs" not in body
    for feature in body["features"]:
        parts = feature["geometry"]["coordinates"]
        for rings in parts if feature["geometry"]["type"] == "MultiPolygon" else [parts]:
            assert shapely.LinearRing(rings[0]).is_ccw
            assert all(14 < x < 16 and 46 < y < 48 for x, y in rings[0])
    no_crs = polygons(find(labels, score, tmp_path, crs=None), NAMES, Affine.identity(), None, "s")
    assert no_crs.area_m2.isna().all()
    with pytest.raises(ValueError, match="the scene has no CRS: save gpkg or coco"):
        write_geojson(no_crs, tmp_path / "no.geojson")
    assert not (tmp_path / "no.geojson").exists()


def test_a_map_without_regions_gives_valid_empty_files(tmp_path):
    labels = np.zeros((40, 50), np.uint8)
    regions = find(labels, labels, tmp_path)
    table = polygons(regions, NAMES, UTM["transform"], CRS, "s.tif", simplify=1)
    write_geopackage(table, tmp_path / "s.gpkg", NAMES, COLORS)
    write_geojson(table, tmp_path / "s.geojson")
    back = geopandas.read_file(tmp_path / "s.gpkg", layer="regions")
    assert len(back) == 0
    assert back.crs == CRS
    assert {"class_id", "class_name", "score_mean", "area_m2", "source"} <= set(back.columns)
    assert json.loads((tmp_path / "s.geojson").read_text())["features"] == []
    assert coco_dataset(regions, (40, 50), NAMES, 1, "s.tif")["annotations"] == []


def test_coco_masks_and_boxes_agree(tmp_path, monkeypatch):
    monkeypatch.setattr("skysense_o.scenes.coco.COLUMNS", 16)
    labels, score = speckled()
    labels[:, 30:50] = 1  # runs of class 1 continue in the next column, and in the next chunk of columns
    regions = find(labels, score, tmp_path)
    data = coco_dataset(regions, labels.shape, NAMES, 1, "s.tif")
    assert [c["name"] for c in data["categories"]] == ["red", "green & <blue>"]
    with rasterio.open(regions.path) as file:
        numbers = file.read(1)
    for annotation in data["annotations"]:
        inside = mask.decode(annotation["segmentation"]).astype(bool)
        assert np.array_equal(inside, numbers == annotation["id"])
        assert annotation["segmentation"] == {
            **mask.encode(np.asfortranarray(inside.astype(np.uint8))),
            "counts": mask.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode(),
        }
        assert mask.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
    boxes = coco_boxes(regions)
    assert [b["bbox"] for b in boxes] == [a["bbox"] for a in data["annotations"]]
    with pytest.raises(ValueError, match="70000 x 70000 pixels are too many for COCO's run lengths"):
        coco_dataset(regions, (70000, 70000), NAMES, 1, "s.tif")


def test_too_many_regions_are_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    labels, score = speckled()
    monkeypatch.setattr(vectors, "MAX_POLYGONS", 5)
    with pytest.raises(ValueError, match="that can be written as polygons: leave out small regions with --min-area"):
        polygons(find(labels, score, tmp_path), NAMES, UTM["transform"], CRS, "s")
    monkeypatch.setattr(regions_module, "MAX_PIECES", 5)
    with pytest.raises(ValueError, match="has more than 5 regions"):
        find(labels, score, tmp_path)
