"""Tests of `segment_scene` and `scene_label_map`, which process a scene in one call."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from made_scenes import UTM, colour_predictor, fields, write_scene

import skysense_o

SMALL = {"window": 64, "overlap": 16, "progress": False}


def test_a_scene_as_a_table(tmp_path):
    path = write_scene(tmp_path / "s.tif", fields(96, 120))
    table = skysense_o.segment_scene(path, "red,green,blue", weights=colour_predictor(), **SMALL)
    assert table.crs.to_epsg() == 32633
    assert set(table.class_name) == {"red", "green", "blue"}
    assert table.area.sum() == pytest.approx(96 * 120 * 4)
    assert table.area_m2.sum() == pytest.approx(96 * 120 * 4, rel=0.01)
    larger = skysense_o.segment_scene(path, "red,green,blue", weights=colour_predictor(), min_area=2000, **SMALL)
    assert 0 < len(larger) < len(table)
    assert larger.area_m2.min() >= 2000
    assert [p.name for p in tmp_path.iterdir()] == ["s.tif"], "the call must leave no other files in the folder"


def test_a_scene_as_a_label_map(tmp_path):
    pytest.importorskip("rioxarray", reason='pip install -e ".[test]"')
    path = write_scene(tmp_path / "s.tif", fields(96, 120))
    labels = skysense_o.scene_label_map(path, ["red", "green", "blue"], weights=colour_predictor(), **SMALL)
    assert labels.dims == ("y", "x")
    assert labels.attrs["classes"] == ["red", "green", "blue"]
    assert labels.rio.crs.to_epsg() == 32633
    assert labels.rio.transform() == UTM["transform"]
    kept = tmp_path / "kept"
    again = skysense_o.scene_label_map(path, "red,green,blue", weights=colour_predictor(), folder=kept, **SMALL)
    with rasterio.open(kept / "s_labels.tif") as file:
        assert np.array_equal(file.read(1), labels.values)
    assert np.array_equal(again.values, labels.values)


def test_wrong_calls(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.tif"):
        skysense_o.segment_scene("nowhere.tif", "water", weights=colour_predictor())
    with pytest.raises(TypeError, match="unknown option .colour.: choose among bands, gsd"):
        skysense_o.segment_scene("nowhere.tif", "water", weights=colour_predictor(), colour="red")
