"""Tests that images with much finer pixels than training images, such as drone images, are first scaled down."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from skysense_o import Predictor
from skysense_o.inference.pixel_size import at_full_size, reduced, reduction

KNOWN = (0.1, 0.6)


@pytest.fixture
def predictor(small_model):
    return Predictor(small_model, known_gsd=KNOWN)


@pytest.mark.parametrize(
    ("pixel_size", "known", "factor"),
    [(0.02, KNOWN, 0.2), (0.05, KNOWN, 0.5), (0.051, KNOWN, 1), (0.3, KNOWN, 1), (30, KNOWN, 1), (0.02, (), 1)],
)
def test_only_pixels_at_least_twice_as_fine_as_any_of_training_are_reduced(pixel_size, known, factor):
    assert reduction(pixel_size, known) == pytest.approx(factor)


@pytest.mark.parametrize("pixel_size", [0, -0.1, float("nan"), float("inf")])
def test_an_impossible_pixel_size_is_an_error(pixel_size):
    with pytest.raises(ValueError, match="pixel size .* is out of range: metres per pixel, above 0"):
        reduction(pixel_size, KNOWN)


def test_the_model_sees_the_reduced_image_and_the_result_has_the_full_size(predictor):
    fine = np.random.default_rng(0).integers(0, 255, (256, 320, 3), np.uint8)
    small = reduced(fine, 0.25)
    assert small.shape == (64, 80, 3)
    found = predictor(fine, "road,tree,water", pixel_size=0.025)
    seen = predictor(small, "road,tree,water")
    assert found.labels.shape == (256, 320)
    enlarged = cv2.resize(seen.labels.astype(np.uint8), (320, 256), interpolation=cv2.INTER_NEAREST_EXACT)
    # Borders differ, because at full size they are interpolated more finely.
    assert (found.labels == enlarged).mean() > 0.9
    assert not (predictor(fine, "road,tree,water").labels == found.labels).all()


def test_windows_of_a_reduced_image_give_the_full_size_too(predictor):
    fine = np.random.default_rng(0).integers(0, 255, (256, 320, 3), np.uint8)
    found = predictor(fine, "road,tree", pixel_size=0.025, window=64)
    assert found.labels.shape == found.score.shape == (256, 320)
    blocks = found.labels.reshape(64, 4, 80, 4)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_labels_of_an_image_that_was_not_reduced_are_returned_as_they_are():
    labels, score = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.float32)
    assert at_full_size(labels, score, (4, 5))[0] is labels


def test_an_encoded_image_cannot_be_reduced_any_more(predictor):
    image = predictor.set_image(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="already encoded as a whole: leave out pixel_size"):
        predictor(image, "road", pixel_size=0.02)


def test_the_command_takes_the_pixel_size(tmp_path, call):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (300, 400, 3), np.uint8)).save(tmp_path / "drone.png")
    options = ("--classes", "road,tree", "--pixel-size", "0.02", "--save", "labels,json", "--output", tmp_path / "out")
    code, _, err = call("demo/demo.py", "--input", tmp_path / "drone.png", *options)
    assert code == 0, err
    body = json.loads((tmp_path / "out/drone.json").read_text())
    assert body["settings"]["pixel_size"] == 0.02
    assert Image.open(tmp_path / "out/drone_labels.png").size == (400, 300)


def test_a_pixel_size_out_of_range_is_reported_before_the_weights_are_loaded(tmp_path, call):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    options = ("--classes", "road", "--pixel-size", "0", "--output", tmp_path / "out")
    code, _, err = call("demo/demo.py", "--input", tmp_path / "a.png", *options)
    assert code == 2
    assert "pixel size 0.0 is out of range: metres per pixel, above 0" in err
    assert not (tmp_path / "out").exists()


def test_the_pixel_size_of_a_georeferenced_file_is_its_own(predictor, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 128, 128), np.uint8)
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(5e5, 5e6, 0.3, 0.3)}
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", 128, 128, 3, dtype="uint8", **place) as file:
        file.write(pixels)
    for options in ({}, {"probabilities": True}):
        given = predictor(tmp_path / "a.tif", "road,tree", pixel_size=0.02, **options)
        assert (given.labels == predictor(tmp_path / "a.tif", "road,tree", **options).labels).all()
