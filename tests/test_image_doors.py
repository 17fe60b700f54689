"""Tests that every function that reads images for a task (here called a "door") gets the same, correct pixels."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

pytest.importorskip("rasterio", reason='pip install -e ".[geo]"')
import rasterio
from made_scenes import ColourModel
from odd_images import PLACED, PLAIN, Made, hole

from skysense_o import Predictor
from skysense_o.cli.request import read_plain
from skysense_o.data.captions import read_record_image
from skysense_o.data.check import check_data_set
from skysense_o.data.mapper import evaluation_sample, read_image_and_labels
from skysense_o.data_engine.collect import LEAST_VALID, cuts
from skysense_o.image_io import FILL, gdal_settings, image_size, is_georeferenced, read_image
from skysense_o.interactive.opening import UPLOADS, open_upload
from skysense_o.sample import IGNORE
from skysense_o.scenes.raster import Raster
from skysense_o.vocabulary import Vocabulary


def predictor_door(path, monkeypatch) -> np.ndarray:
    """Return the RGB image and the valid mask that `Predictor` gives to its model."""
    calls, model = [], ColourModel()
    model.tower.pixel_mean = torch.tensor(FILL, dtype=torch.float32).view(3, 1, 1)
    name = "skysense_o.inference.predictor.PromptedImage"
    monkeypatch.setattr(name, lambda model, rgb, precision, valid: calls.append((rgb, valid)))
    Predictor(model).set_image(path)
    return calls[0]


def data_doors(made: Made, folder) -> dict[str, np.ndarray]:
    height, width = image_size(made.path)
    Image.fromarray(np.zeros((height, width), np.uint8)).save(folder / "labels.png")
    record = {"file_name": str(made.path), "sem_seg_file_name": str(folder / "labels.png"), "names": ["all"]}
    image, labels = read_image_and_labels(record)
    valid = np.ones(labels.shape, bool) if made.valid is None else made.valid
    assert np.array_equal(labels == IGNORE, ~valid), "pixels without data must be ignored in the labels"
    sample = evaluation_sample(record, Vocabulary.parse("all"))
    return {
        "training": image,
        "evaluation": sample["image"].numpy().transpose(1, 2, 0),
        "captions": read_record_image({"file_name": str(made.path)}),
    }


def raster_door(path) -> np.ndarray:
    with gdal_settings(), Raster(path) as raster:
        return raster.pixels(range(raster.size[0]), range(raster.size[1]), FILL).transpose(1, 2, 0)


def collect_door(path) -> np.ndarray:
    image = np.empty((*image_size(path), 3), np.uint8)
    for part in cuts(path, 1000):
        image[part.row : part.row + part.pixels.shape[0], part.column : part.column + part.pixels.shape[1]] = (
            part.pixels
        )
    return image


@pytest.mark.parametrize("kind", [*PLAIN, *PLACED])
def test_all_doors_get_the_same_and_right_pixels(tmp_path, kind, monkeypatch):
    made = {**PLAIN, **PLACED}[kind](tmp_path)
    placed = kind in PLACED
    assert is_georeferenced(made.path) == placed
    read = read_image(made.path)
    valid = np.ones(read.size, bool) if made.valid is None else made.valid
    assert read.size == made.values.shape[:2] == image_size(made.path)
    assert np.array_equal(np.ones(read.size, bool) if read.valid is None else read.valid, valid)
    error = np.abs(read.rgb[valid].astype(float) - made.expected()[valid])
    # Images this small are sampled completely, so the percentiles are exact and only rounding differs.
    assert error.max() <= (40 if not made.exact else 0 if made.values.dtype == np.uint8 else 1.01), error.max()
    assert error.mean() < 4

    expected = read.filled()
    assert (expected[~valid] == FILL).all()
    shown, shown_valid = predictor_door(made.path, monkeypatch)
    demo = read_plain(made.path, Namespace(max_pixels=None))
    doors = {"predictor": shown, "demo, classify and ask": demo.filled()}
    doors |= data_doors(made, tmp_path)
    if valid.mean() >= LEAST_VALID:
        doors["collect"] = collect_door(made.path)
    if placed:
        doors["scene"] = raster_door(made.path)
    for door, rgb in doors.items():
        assert np.array_equal(rgb, expected), door
    assert (shown_valid is None) == (made.valid is None)
    opened = open_upload(made.path, None, alone=False)
    assert np.array_equal(opened.rgb, read.filled((255, 255, 255)))
    assert (opened.scene is not None) == placed
    if not placed and made.path.suffix.lower() in UPLOADS:
        assert np.array_equal(read_image(made.path.read_bytes()).filled(), expected), (
            "an image read from bytes, as in a shard, must be the same"
        )


def test_check_dataset_reports_the_stretch_of_a_data_set_once(tmp_path):
    for kind in ("img_dir", "ann_dir"):
        (tmp_path / kind).mkdir()
    for i, offset in enumerate((1000, 5000, 9000)):
        values = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) + offset
        Image.fromarray(values).save(tmp_path / f"img_dir/{i}.png")
        Image.fromarray((values % 2).astype(np.uint8)).save(tmp_path / f"ann_dir/{i}.png")
    (tmp_path / "dataset.yaml").write_text("name: deep\nclasses: [even, odd]\n")
    (report,) = check_data_set(str(tmp_path), progress=False)
    told = [note for note in report.notes if "stretched" in note]
    assert len(told) == 1
    assert told[0].startswith(
        "3 of 3 images have values of uint16: in training and prediction, each image is stretched"
    )
    assert "its own 2nd percentile (1095.98 to 9095.98 in these images)" in told[0]
    assert "its 98th (5703.02 to 13703)" in told[0]


def test_predictor_and_demo_give_the_same_labels_for_a_scene(mini, call, tmp_path):
    path, words = ROOT / "demo/foz_30m.tif", "water,vegetation,building"
    result = mini(path, words)
    code, _, err = call(
        "demo/demo.py", "--input", path, "--classes", words, "--save", "geotiff,json", "--output", tmp_path
    )
    assert code == 0, err
    with rasterio.open(tmp_path / "foz_30m_labels.tif") as file:
        assert np.array_equal(file.read(1), result.labels)


def test_pixels_without_data_have_no_class_and_no_share(mini, tmp_path):
    made = PLACED["geotiff rgb and alpha"](tmp_path)
    plain = PLAIN["png rgb and alpha"](tmp_path)
    for path in (made.path, plain.path):
        result = mini(path, "water,road")
        assert np.array_equal(result.labels == 255, ~hole())
        rows = result.areas()
        assert sum(row["pixels"] for row in rows) == hole().sum()
        assert sum(row["share"] for row in rows) == pytest.approx(1)
