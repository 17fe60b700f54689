"""Tests of objects in scenes: found in windows, joined across windows, written as boxes, COCO and polygons."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from rasterio.transform import from_origin
from tiny_sam3 import SIDE, make_detector
from transformers.utils import logging

from skysense_o import Predictor
from skysense_o.modeling.sam3_tower import Sam3Answer, Sam3Embedding
from skysense_o.modeling.tower import Tower
from skysense_o.sam3 import Sam3
from skysense_o.scenes.options import SceneOptions, SceneOutputs
from skysense_o.scenes.run import run_scene
from skysense_o.vocabulary import Vocabulary

logging.disable_progress_bar()
GRID = 28
SHIPS = ((10, 8, 30, 20), (40, 30, 70, 44), (44, 60, 66, 100), (100, 90, 118, 110))
"""x0,y0,x1,y1. The second and third ship lie across borders of windows. All are even, to fit the masks' grid."""


class BrightTower(Tower):
    """A fake tower that finds every bright connected region exactly, one instance each."""

    divisor, stride, dim, grid, input_size, pyramid_channels, tracker = 1, 14, 4, GRID, SIDE, (), None
    asked = 0

    def __init__(self) -> None:
        super().__init__((0.0,) * 3, (127.5,) * 3)
        self.word = torch.nn.Parameter(torch.zeros(1))

    def text_parameters(self):
        return [self.word]

    def embed(self, images):
        bright = torch.stack([(image[0] > 100).float() for image in images])[:, None]
        return Sam3Embedding((bright,) * 4, (bright,) * 4, bright)

    def encode_phrases(self, phrases):
        ship = torch.tensor([float(phrase == "ship") for phrase in phrases])
        return ship.view(-1, 1, 1).expand(-1, 1, 4), torch.ones(len(phrases), 1, dtype=torch.bool)

    def answer(self, embedding, tokens, valid):
        self.asked += 1
        n, q = len(tokens), 4
        semantic = torch.full((n, GRID, GRID), 0.1)
        masks, scores, boxes = torch.full((n, q, GRID, GRID), -30.0), torch.zeros(n, q), torch.zeros(n, q, 4)
        for i in range(n):
            if tokens[i, 0, 0] == 0:
                continue
            import cv2

            bright = embedding.maps[0][i, 0, ::2, ::2].numpy().astype(np.uint8)
            count, parts = cv2.connectedComponents(bright)
            semantic[i][torch.from_numpy(bright) > 0] = 0.9
            for part in range(1, count):
                y, x = np.nonzero(parts == part)
                masks[i, part - 1][torch.from_numpy(parts == part)] = 30.0
                scores[i, part - 1] = 0.9 - 0.1 * (len(y) < 20)
                boxes[i, part - 1] = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]) / GRID
        return Sam3Answer(semantic, masks, scores, boxes, torch.ones(n))


@pytest.fixture
def scene(tmp_path):
    pixels = np.full((3, 130, 150), 20, np.uint8)
    for x0, y0, x1, y1 in SHIPS:
        pixels[:, y0:y1, x0:x1] = 200
    path = tmp_path / "harbour.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 130, "width": 150, "crs": "EPSG:32621"}
    with rasterio.open(path, "w", transform=from_origin(700000, 7000000, 2.0, 2.0), **profile) as file:
        file.write(pixels)
    return path


def run(predictor, path, folder, **outputs):
    words = Vocabulary.of(["ship"], ["water"])
    outputs = SceneOutputs(folder, ["gpkg", "geojson", "coco", "boxes", "labels"], "harbour", **outputs)
    return run_scene(predictor, path, words, outputs, SceneOptions(overlap=28), progress=False)


def test_objects_across_windows_are_one(scene, tmp_path):
    predictor = Predictor(Sam3(tower=BrightTower(), phrase_chunk=3))
    written, _ = run(predictor, scene, tmp_path / "out")
    names = {path.name for path in written}
    assert {"harbour.gpkg", "harbour.geojson", "harbour_coco.json", "harbour_boxes.json"} <= names
    boxes = json.loads((tmp_path / "out" / "harbour_boxes.json").read_text())
    found = sorted(
        (b["bbox"][0], b["bbox"][1], b["bbox"][0] + b["bbox"][2], b["bbox"][1] + b["bbox"][3]) for b in boxes
    )
    assert found == sorted(SHIPS)
    assert all(b["category_id"] == 1 and b["score"] == pytest.approx(0.9, abs=0.11) for b in boxes)
    table = geopandas.read_file(tmp_path / "out" / "harbour.gpkg")
    areas = sorted((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in SHIPS)
    # Masks lose their corners on the coarse grid of the model.
    np.testing.assert_allclose(sorted(table.pixels), areas, rtol=0.15)
    np.testing.assert_allclose(table.area_m2, table.pixels * 4.0)
    np.testing.assert_allclose(table.geometry.area, table.area_m2)
    coco = json.loads((tmp_path / "out" / "harbour_coco.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["ship"]
    for annotation in coco["annotations"]:
        assert coco_mask.area(annotation["segmentation"]) == annotation["area"]


def test_ships_side_by_side_stay_two(tmp_path, scene):
    """Two adjacent ships stay two objects, although their masks form a single region of the label map."""
    pixels = np.full((3, 56, 56), 20, np.uint8)
    pixels[:, 10:30, 10:40] = 200

    class Two(BrightTower):
        def answer(self, embedding, tokens, valid):
            out = super().answer(embedding, tokens, valid)
            for n in range(len(tokens)):
                if out.scores[n, 0] > 0:
                    left, right = out.masks[n, 0].clone(), out.masks[n, 0].clone()
                    left[:, 12:], right[:, :12] = -30.0, -30.0
                    out.masks[n, 0], out.masks[n, 1] = left, right
                    out.scores[n, :2] = 0.9
                    out.boxes[n, :2] = torch.tensor([[5, 5, 12, 15], [12, 5, 20, 15]]) / GRID
            return out

    path = tmp_path / "two.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 56, "width": 56, "crs": "EPSG:32621"}
    with rasterio.open(path, "w", transform=from_origin(700000, 7000000, 2.0, 2.0), **profile) as file:
        file.write(pixels)
    run(Predictor(Sam3(tower=Two())), path, tmp_path / "out")
    boxes = json.loads((tmp_path / "out" / "harbour_boxes.json").read_text())
    assert sorted(tuple(b["bbox"]) for b in boxes) == [(10, 10, 14, 20), (24, 10, 16, 20)]
    run(Predictor(Sam3(tower=Two(), instances=False)), path, tmp_path / "regions")
    assert len(json.loads((tmp_path / "regions" / "harbour_boxes.json").read_text())) == 1


def test_an_interrupted_run_asks_no_window_twice(scene, tmp_path, monkeypatch):
    whole = Predictor(Sam3(tower=BrightTower()))
    run(whole, scene, tmp_path / "whole")
    calls = whole.model.tower.asked

    class Killed(Exception):
        pass

    predictor, left = Predictor(Sam3(tower=BrightTower())), [3]
    instances = predictor.model.instances

    def stops(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return instances(*args, **kwargs)

    monkeypatch.setattr(predictor.model, "instances", stops)
    with pytest.raises(Killed):
        run(predictor, scene, tmp_path / "out")
    monkeypatch.setattr(predictor.model, "instances", instances)
    with open(tmp_path / "out" / "harbour.work" / "instances_0.jsonl", "a") as file:
        file.write('{"index": [9')  # append an incomplete line, which a killed run may leave
    run(predictor, scene, tmp_path / "out")
    assert predictor.model.tower.asked == calls
    for name in ("harbour_boxes.json", "harbour_coco.json"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_an_object_in_pieces_is_one_feature(scene, tmp_path):
    """An object split by another object with a better score is written as one feature."""

    class Crossed(BrightTower):
        def answer(self, embedding, tokens, valid):
            out = super().answer(embedding, tokens, valid)
            for n in range(len(tokens)):
                if out.scores[n, 0] > 0:
                    out.masks[n, 3, :, 13:16] = 30.0
                    out.scores[n, 3], out.boxes[n, 3] = 0.99, torch.tensor([13, 0, 16, 28]) / GRID
            return out

    pixels = np.full((3, 56, 56), 20, np.uint8)
    pixels[:, 10:30, 10:40] = 200
    with rasterio.open(scene, "w", driver="GTiff", dtype="uint8", count=3, height=56, width=56, crs="EPSG:32621",
                       transform=from_origin(700000, 7000000, 2.0, 2.0)) as file:  # fmt: skip
        file.write(pixels)
    run(Predictor(Sam3(tower=Crossed())), scene, tmp_path / "out")
    table = geopandas.read_file(tmp_path / "out" / "harbour.gpkg")
    assert len(table) == 2
    assert sorted(len(shape.geoms) for shape in table.geometry) == [1, 2]


def test_the_demo_on_a_folder_of_sam3(call, tmp_path, scene):
    """demo.py with a SAM 3 folder segments a plain image, and finds boxes in a scene."""
    folder = make_detector(tmp_path / "sam3")
    code, _, err = call(
        "demo/demo.py", "--input", scene, "--weights", folder, "--classes", "ship,water|sea", "--output",
        tmp_path / "out", "--save", "geotiff,gpkg,boxes", "--threshold", "0.0",
    )  # fmt: skip
    assert code == 0, err
    assert {"harbour_labels.tif", "harbour.gpkg", "harbour_boxes.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert json.loads((tmp_path / "out" / "harbour_boxes.json").read_text())
    assert "Warning" not in err
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 66, 3), dtype=np.uint8)).save(tmp_path / "town.png")
    code, _, err = call(
        "demo/demo.py", "--input", tmp_path / "town.png", "--weights", folder, "--classes", "ship,water|sea",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert Image.open(tmp_path / "out" / "town_labels.png").size == (66, 40)
    assert {entry["name"] for entry in json.loads((tmp_path / "out" / "town.json").read_text())["classes"]} == {
        "ship",
        "water",
    }
