"""Doctor and data engine, as their users call them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import load_script
from PIL import Image


def run_doctor(monkeypatch, capsys) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    code = load_script("tools/doctor.py").run()
    return code, capsys.readouterr().out


def test_doctor_finds_what_is_there(monkeypatch, capsys, dubai):
    code, text = run_doctor(monkeypatch, capsys)
    assert code == 0
    assert "The demo can run: bash demo.sh" in text
    assert "weights 'mini'" in text
    assert "4 records in" in text


def test_doctor_names_the_cure_for_missing_data(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    code, text = run_doctor(monkeypatch, capsys)
    assert code == 0, "data is not needed for the demo"
    assert "absent   data" in text
    assert "set DETECTRON2_DATASETS" in text


def test_doctor_fails_without_weights(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("skysense_o.checkpoint.SHIPPED", tmp_path)
    code, text = run_doctor(monkeypatch, capsys)
    assert code == 1
    assert "MISSING  weights" in text
    assert "The demo cannot run." in text


ENGINE = "tools/data_engine.py"


@pytest.fixture
def survey(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "survey"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_a_folder_becomes_a_set_in_the_shape_of_sky_sa(call, survey, tmp_path):
    work = tmp_path / "work"
    code, text, _ = call(
        ENGINE, "--input", survey, "--classes", "water,land,road", "--work", work, "--confidence", "0.3"
    )
    assert code == 0
    assert text.startswith("2 pictures, ")
    for line in (work / "skysa_dataset.jsonl").read_text().splitlines():
        record = json.loads(line)
        labels = np.asarray(Image.open(work / record["segmentation"]))
        image = Image.open(work / record["flickr_url"])
        assert labels.shape == (image.height, image.width)
        assert set(np.unique(labels)) <= {*range(len(record["ann_list"])), 255}
        assert {entry["category_name"] for entry in record["ann_list"]} <= {"water", "land", "road"}


def test_an_interrupted_run_goes_on_and_a_bad_picture_is_told(call, survey, tmp_path):
    work = tmp_path / "work"
    words = ("--classes", "water,land", "--work", work)
    assert call(ENGINE, "--input", survey / "a.png", *words)[0] == 0
    (survey / "c.png").write_text("no picture")
    code, text, err = call(ENGINE, "--input", survey, *words)
    assert code == 1
    assert "c.png is not a picture" in err
    assert text.startswith("1 pictures, "), "a.png was not done twice"
    assert len((work / "skysa_dataset.jsonl").read_text().splitlines()) == 2


def test_the_same_name_in_two_folders_is_two_pictures(call, survey, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (40, 30), (200, 30, 10)).save(tmp_path / "other/a.png")
    work = tmp_path / "work"
    assert (
        call(ENGINE, "--input", survey / "a.png", tmp_path / "other/a.png", "--classes", "water,land", "--work", work)[
            0
        ]
        == 0
    )
    records = [json.loads(line) for line in (work / "skysa_dataset.jsonl").read_text().splitlines()]
    assert len({record["flickr_url"] for record in records}) == 2


def test_a_confidence_out_of_range_writes_nothing(call, survey, tmp_path):
    words = ("--classes", "water", "--work", tmp_path / "work", "--confidence", "3")
    code, _, err = call(ENGINE, "--input", survey, *words)
    assert code == 2
    assert "confidence 3.0 is out of range: 0 to 1" in err
    assert not (tmp_path / "work").exists()
