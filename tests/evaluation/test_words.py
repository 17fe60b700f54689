"""Tests of the metrics of everyday words against values computed by hand, and of the command that measures them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import weak_trees as trees
from conftest import load_script

from skysense_o.data.classes import load_classes
from skysense_o.evaluation import words
from skysense_o.evaluation.coverage import BoxCounts, count_boxes, coverage
from skysense_o.evaluation.words import Asker
from skysense_o.training import evaluate

COMMAND = "tools/evaluate_words.py"


def test_a_box_is_hit_where_more_than_half_of_its_inner_half_is_the_word():
    mask = np.zeros((40, 40), bool)
    mask[0:8, 0:8] = True  # covers the first box's inner half (x and y from 2 to 6) completely, and 48 pixels around it
    mask[20:24, 20:24] = True  # covers a quarter of the second box's inner half (x and y from 22 to 26)
    counts = BoxCounts()
    count_boxes(counts, mask, [[0, 0, 8, 8], [20, 20, 28, 28]])
    assert (counts.boxes, counts.hit, counts.pixels, counts.inside) == (2, 1, 80, 80)
    mask[30:35, 0:4] = True  # lies outside all boxes
    count_boxes(counts, mask, [[0, 0, 8, 8]])
    assert counts.hit_share == 2 / 3
    assert counts.inside_share == (80 + 64) / (80 + 100)


def test_exactly_half_is_no_hit_and_a_box_of_one_pixel_counts():
    mask = np.zeros((16, 16), bool)
    mask[2:6, 2:4] = True
    counts = BoxCounts()
    count_boxes(counts, mask, [[0, 0, 8, 8], [2, 2, 3, 3]])
    assert (counts.boxes, counts.hit) == (2, 1)


def test_without_boxes_or_pixels_there_is_no_number():
    assert math.isnan(BoxCounts().hit_share)
    assert math.isnan(BoxCounts().inside_share)


def test_a_word_covers_its_own_images_and_no_others():
    shares = np.array([[0.02, 0.3], [0.01, 0.0], [0.004, 0.2], [0.0, 0.1]])
    found = coverage(shares, ["a", "a", "b", "c"], ("boat", "tree"), {"boat": ("a",), "tree": ("b", "c")})
    assert found["boat"] == (pytest.approx(0.015), pytest.approx(0.002), True)
    assert found["tree"] == (pytest.approx(0.15), pytest.approx(0.15), False)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    trees.roads(tmp_path / "data")
    trees.vehicles(tmp_path / "data")
    return tmp_path / "data"


class Painter(Asker):
    """An `Asker` that labels rows 28 to 43 as word 0 and all other rows as word 1."""

    def __init__(self, limit: int = 0) -> None:
        super().__init__(None, limit)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, image, asked, pixel_size=None):
        self.asked.append(tuple(asked))
        labels = np.ones(image.shape[:2], np.int64)
        labels[28:44] = 0
        return labels


def test_iou_of_a_class_against_the_rest(data):
    """The road is in rows 20 to 35, the prediction in rows 28 to 43: the intersection is 8 rows, the union 24."""
    assert words.ask_roads(Painter()) == {"epfl_roads_val": {"IoU of road": pytest.approx(8 / 24)}}


def test_cars_without_a_box_are_outlined_in_some_images():
    """Rows 0 to 9 are called car. 40 of these pixels are in a van's box, 20 in an outline, 8 unknown, 32 on no car."""
    mask = np.zeros((20, 10), bool)
    mask[:10] = True
    vehicles = load_classes("vehicles").folders
    record = {"dataset": "simd", "boxes": [[0, 0, 10, 4, vehicles.index("van")], [0, 8, 10, 9, vehicles.index("bus")]]}
    shape = {"class": 0, "margin": 0, "polygons": [[[0, 4], [10, 4], [10, 6], [0, 6]]], "circles": []}
    unknown = {"class": -1, "margin": 0, "polygons": [[[0, 6], [8, 6], [8, 7], [0, 7]]], "circles": []}
    outlines = {"dataset": "simd_unboxed", "shapes": [shape, unknown], "complete": [0]}
    counts = BoxCounts()
    words._count_everything(counts, mask, "car", record, outlines)
    assert (counts.inside, counts.pixels) == (60, 92)
    words._count_everything(counts, mask, "car", record, {**outlines, "complete": []})
    words._count_everything(counts, mask, "boat", record, outlines)
    assert counts.pixels == 92, "only images in which every object of the word is marked"


def test_mean_iou_over_words_that_mean_several_labels(data):
    found = words._mean_iou(Painter(), "epfl_roads_val", {"road|lane": (1,), "rest": (0,)})
    assert found["IoU of road"] == pytest.approx(8 / 24)
    assert found["IoU of rest"] == pytest.approx(40 / 56)
    assert found["mIoU"] == pytest.approx((8 / 24 + 40 / 56) / 2)


def test_records_are_spread_evenly(data):
    assert len(Asker(None).records("simd_train")) == 2
    assert len(Asker(None, 1).records("simd_train")) == 1
    assert len(Asker(None, 9).records("simd_train")) == 2


def test_two_words_for_one_index(small_model):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    labels = Asker(small_model)(image, ("tree|vegetation", "road"))
    assert labels.shape == (64, 64)
    assert set(np.unique(labels)) <= {0, 1}


def test_the_command_writes_what_compare_results_reads(data, call, small_model, monkeypatch, tmp_path):
    out, load = tmp_path / "out/words", load_script
    monkeypatch.setattr("skysense_o.inference.predictor.Predictor.from_pretrained", lambda name: Shown(small_model))
    code, said, err = call(COMMAND, "mini", "--only", "roads", "land", "--output", out)
    assert code == 0, err
    assert "IoU of road" in said
    assert "land: left out: no data of czech_landcover_val" in err
    body = json.loads((out / "results.json").read_text())
    (result,) = body["results"]
    assert (result["data_set"], result["task"]) == ("epfl_roads_val", "words")
    found = load("tools/compare_results.py").measured(tmp_path / "out")
    assert set(found) == {("words", "epfl_roads_val", "IoU of road")}


class Shown:
    known_gsd = (0.1, 0.6)

    def __init__(self, model) -> None:
        self.model = model


def test_not_road_is_never_asked_for_as_a_word(data, cfg):
    """Data sets whose label 0 means "not road" have no class to ask for at label 0.

    `DATASETS.TEST all` leaves these data sets out and gives the reason; naming one of them is an error.
    """
    cfg.DATASETS.TEST = ("all",)
    names, left_out = evaluate.test_sets(cfg)
    assert "epfl_roads_val" not in names
    assert "'not road'" in left_out["epfl_roads_val"]
    cfg.DATASETS.TEST = ("epfl_roads_val",)
    with pytest.raises(ValueError, match="'epfl_roads_val': its label 0 is 'not road'.*tools/evaluate_words.py"):
        evaluate.check_tests(cfg)
