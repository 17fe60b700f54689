"""Tests of what is known to be in validation images, and of the command that calibrates presence with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import weak_trees as trees
from conftest import small_config
from PIL import Image

from skysense_o.checkpoint import config_of, read_weights, save_weights
from skysense_o.config import model_config
from skysense_o.evaluation.presence import PresenceSource, presence_cases
from skysense_o.inference.predictor import Predictor
from skysense_o.meta_arch import SkySenseO

COMMAND = "tools/calibrate_presence.py"
ROADS = PresenceSource("epfl_roads_val", 32, r"img_\d+")


def road(data, number: int, rows: slice, unknown: slice = slice(0)) -> None:
    """Write one more validation image of 64 x 64 pixels with a road, and rows without a label."""
    labels = np.zeros((trees.SIDE, trees.SIDE), np.uint8)
    labels[rows], labels[unknown] = 1, 255
    body = trees.image(data / f"roads/images/img_{number}.png", (80, 120, 60), number)
    body[rows] = 160
    Image.fromarray(body).save(data / f"roads/images/img_{number}.png")
    Image.fromarray(labels).save(data / f"roads/labels/img_{number}.png")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    trees.roads(tmp_path / "data")  # img_5 has a road in rows 20 to 35
    trees.vehicles(tmp_path / "data")
    road(tmp_path / "data", 10, slice(0, 20))
    return tmp_path / "data"


def test_a_crop_has_the_road_where_its_labels_do(data, small_model):
    cases = presence_cases(small_model, ROADS)
    assert {case.word for case in cases} == {"road"}, "'not road' is no word"
    assert [case.present for case in cases] == [True, True, False, False, True, True, True, True]
    assert [case.first_half for case in cases] == [True] * 4 + [False] * 4, "img_10, then img_5: never parts of one"
    assert np.isfinite([(case.own, case.mask) for case in cases]).all()


def test_a_small_corner_of_road_does_not_count_and_unlabelled_crops_are_left_out(data, small_model):
    road(data, 15, slice(0))
    path = data / "roads/labels/img_15.png"
    labels = np.zeros((64, 64), np.uint8)
    labels[0, :5] = labels[0, 32:38] = 1  # 5 and 6 of the 1024 pixels of a crop; 0.5 % are 5.12
    labels[40:] = 255
    Image.fromarray(labels).save(path)
    cases = presence_cases(small_model, ROADS)
    assert [case.present for case in cases[4:-4]] == [False, True]


def test_absence_is_known_for_aeroplanes_only(data, small_model):
    """The validation image has a boat in a box: no aeroplane, and nothing is known of cars."""
    cases = presence_cases(small_model, PresenceSource("simd_val", 0, ".*"))
    assert [(case.word, case.present) for case in cases] == [("airplane", False)]


def test_a_decoder_without_presence_is_an_error(data):
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.PRESENCE = False
    with pytest.raises(ValueError, match="SAMMaskHead gives no presence scores: there is nothing to calibrate"):
        presence_cases(SkySenseO(cfg).eval(), ROADS)


@pytest.fixture
def weights(tmp_path):
    cfg, path = small_config(), tmp_path / "small.safetensors"
    torch.manual_seed(0)
    save_weights(SkySenseO(cfg), path, model_config(cfg).dump())
    return path


def test_the_command_writes_what_it_prints_and_inference_uses_it(call, data, weights, tmp_path, monkeypatch):
    module = "skysense_o.evaluation.presence.SOURCES"
    monkeypatch.setattr(module, (ROADS, PresenceSource("dubai_val", 32, r"tile\d+")))
    for number in range(15, 60, 5):
        road(data, number, slice(0, 30) if number % 2 else slice(0))
    target = tmp_path / "calibrated.safetensors"
    code, said, err = call(COMMAND, weights, "--write", target)
    assert code == 0, err
    assert "dubai_val: left out: no data of dubai_val" in err
    assert "| class   | images   | with it   | AUC" in said
    stored = config_of(target).MODEL.KNOWN.PRESENCE
    assert len(stored) == 2
    assert f"MODEL.KNOWN.PRESENCE {stored}" in said
    before, after = read_weights(weights), read_weights(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    image = np.full((64, 64, 3), 120, np.uint8)
    raw, calibrated = (Predictor.from_pretrained(path)(image, ["road"]) for path in (weights, target))
    assert np.array_equal(raw.labels, calibrated.labels)
    assert raw.presence != calibrated.presence


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("mini", "--write", "mini.pth"), "mini.pth ends in '.pth': write .safetensors"),
        (("mini",), "none of the data sets is installed: set DETECTRON2_DATASETS"),
    ],
)
def test_mistakes_get_one_line(call, tmp_path, monkeypatch, words, says):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
    code, _, err = call(COMMAND, *words)
    assert code == 2
    assert says in err
