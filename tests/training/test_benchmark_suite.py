"""Tests of `tools/train_net.py --eval-only`, as run by run_eval.sh: one table with every available data set."""

from __future__ import annotations

import csv
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image
from pycocotools import mask
from training.test_whole_path import SMALL, command
from vqa.test_questions import vqa_config

from skysense_o.checkpoint import save_weights
from skysense_o.config import model_config
from skysense_o.data.catalog import evaluation_splits, records_of
from skysense_o.evaluation.predictions import as_coco
from skysense_o.evaluation.table import read_published, rows_of
from skysense_o.meta_arch import SkySenseO
from skysense_o.vqa import EmbeddedVQA

CONFIG = ("--config-file", ROOT / "configs/mini/finetune.yaml", "--eval-only")


@pytest.fixture
def weights(tmp_path):
    """Save the weights of a small untrained model; return their path."""
    torch.manual_seed(0)
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.SHARED_TOKENS = 5  # the overrides in SMALL do not change this key
    save_weights(SkySenseO(cfg), tmp_path / "small.safetensors", model_config(cfg).dump())
    return tmp_path / "small.safetensors"


@pytest.fixture
def run(call, tmp_path, weights):
    """Return run(*words), which evaluates and returns the exit code, the output and results.json."""

    def evaluate(*words, folder="eval"):
        small = [*SMALL, "SOLVER.PRECISION", "no", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / folder]
        code, out, err = call("tools/train_net.py", *CONFIG, *small, *words)
        for name in ("fvcore", "detectron2", "skysense_o"):
            logging.getLogger(name).handlers.clear()
        path = tmp_path / folder / "results.json"
        return code, out + err, json.loads(path.read_text()) if path.is_file() else None

    return evaluate


def test_every_available_data_set_in_one_table(run, dubai, questions, tmp_path):
    """One table has results for segmentation and for questions, each with its model; missing data sets get a hint."""
    records = records_of("rsivqa_train")
    cfg = vqa_config(records)
    save_weights(EmbeddedVQA(cfg), tmp_path / "vqa.safetensors", model_config(cfg).dump())
    words = ("DATASETS.TEST", "all", "MODEL.VQA.WEIGHTS", tmp_path / "vqa.safetensors")
    code, out, body = run(*words, "TEST.PREDICTIONS", "('coco','png')", "TEST.PROTOCOL", "native")
    assert code == 0, out
    assert [r["data_set"] for r in body["results"]] == ["dubai_val", "rsivqa_test"]
    assert "python datasets/prepare_loveda.py" in body["left_out"]["loveda_val"]
    assert set(body["left_out"]) | {"dubai_val", "rsivqa_test"} == {name for name, _ in evaluation_splits()}
    record = body["results"][0]["record"]
    assert {"command", "config", "weights_sha256", "data", "protocol", "versions", "seed", "machine"} < set(record)
    assert record["protocol"]["name"] == "native"
    assert record["protocol"]["window"] == -1
    assert record["seconds"] > 0
    assert record["peak_memory_gib"] > 0
    text = (tmp_path / "eval/results.md").read_text()
    assert "| dubai_val" in text
    assert "SkySense-O, published" in text
    first = next(csv.DictReader((tmp_path / "eval/results.csv").read_text().splitlines()))
    assert first["data set"] == "dubai_val"
    inference = tmp_path / "eval/inference"
    said = json.loads((inference / "rsivqa_test_predictions.json").read_text())
    assert len(said) == 9
    assert {"question", "answer", "kind", "predictions"} < set(said[0])
    images = sorted(p.name for p in (inference / "dubai_val_images").iterdir())
    assert [name.split("_")[0] for name in images] == ["best", "worst"], (
        "of two images, the median one is the best, so it is not drawn again"
    )
    assert (inference / "dubai_val_names_confusion.png").is_file()
    _predictions_agree(inference / "dubai_val_predictions", body["results"][0]["results"]["names"])


def test_a_folder_of_ones_own_by_its_path(run, dubai, tmp_path):
    folder = tmp_path / "mine"
    for kind, own in (("images", "img_dir/val"), ("labels", "ann_dir/val")):
        shutil.copytree(dubai / kind, folder / own)
    (folder / "dataset.yaml").write_text("classes: [water, land, road, building, vegetation]\n")
    code, out, body = run("DATASETS.TEST", f"('{folder}:val',)", "TEST.IMAGES", 1)
    assert code == 0, out
    assert [r["data_set"] for r in body["results"]] == [f"{folder}:val"]
    assert 0 <= body["results"][0]["numbers"]["mIoU"] <= 1


def _predictions_agree(folder, metrics):
    """Check that run-length masks equal the PNG label maps, and that Detectron2's evaluator gives the same metrics."""
    records, rows = records_of("dubai_val"), json.loads((folder / "sem_seg_predictions.json").read_text())
    DatasetCatalog.register("again", lambda: records)
    MetadataCatalog.get("again").set(stuff_classes=list("abcde"), ignore_label=255)
    try:
        load = lambda filename, dtype: np.asarray(Image.open(filename), dtype=dtype)  # noqa: E731
        evaluator = SemSegEvaluator("again", distributed=False, sem_seg_loading_fn=load)
        evaluator.reset()
        for number, record in enumerate(records):
            stored = np.asarray(Image.open(sorted(folder.glob(f"{number:05d}_*.png"))[0]))
            for row in (r for r in rows if r["file_name"] == record["file_name"]):
                assert np.array_equal(mask.decode(row["segmentation"]) > 0, stored == row["category_id"])
            one_hot = torch.nn.functional.one_hot(torch.from_numpy(stored.astype(np.int64)), 5)
            evaluator.process([record], [{"sem_seg": one_hot.permute(2, 0, 1).float()}])
        theirs = evaluator.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove("again")
    for key in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert 100 * metrics[key] == pytest.approx(theirs[key]), key


def test_finished_results_are_read_back(run, dubai, weights, tmp_path, monkeypatch):
    """A second run calls no model, but a run with another protocol or other data does."""
    calls, predict = [], SkySenseO.predict
    monkeypatch.setattr(SkySenseO, "predict", lambda self, s, r: calls.append(1) or predict(self, s, r))
    quiet = ("TEST.IMAGES", 0)
    first = run(*quiet)[2]
    assert len(calls) == 2
    again = run(*quiet)[2]
    assert len(calls) == 2
    assert again["results"][0]["numbers"] == first["results"][0]["numbers"]
    assert again["results"][0]["record"]["time"] == first["results"][0]["record"]["time"]
    run(*quiet, "TEST.THRESHOLD", 0.9)
    assert len(calls) == 4
    (dubai / "images/tile6_002.jpg").write_bytes((dubai / "images/tile6_001.jpg").read_bytes())
    (dubai / "labels/tile6_002.png").write_bytes((dubai / "labels/tile6_001.png").read_bytes())
    run(*quiet, "TEST.THRESHOLD", 0.9)
    assert len(calls) == 7
    (tmp_path / "eval/inference/dubai_val.json").write_text('{"key": "cut sh')
    run(*quiet, "TEST.THRESHOLD", 0.9)
    assert len(calls) == 10


@pytest.mark.slow
def test_two_processes_equal_one(dubai, questions, weights, tmp_path):
    """Two processes evaluate three images like one process; no image is counted twice or left out."""
    (dubai / "images/tile6_002.jpg").write_bytes((dubai / "images/tile1_001.jpg").read_bytes())
    (dubai / "labels/tile6_002.png").write_bytes((dubai / "labels/tile1_001.png").read_bytes())
    cfg = vqa_config(records_of("rsivqa_train"))
    save_weights(EmbeddedVQA(cfg), tmp_path / "vqa.safetensors", model_config(cfg).dump())
    bodies = []
    for count in (1, 2):
        words = ["--num-gpus", count, *SMALL, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / f"eval{count}"]
        words += ["MODEL.VQA.WEIGHTS", tmp_path / "vqa.safetensors", "TEST.PREDICTIONS", "('coco',)"]
        done = command(
            ROOT / "tools/train_net.py", *CONFIG, *words, "DATASETS.TEST", "('dubai_val','rsivqa_test')", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        bodies.append(json.loads((tmp_path / f"eval{count}/results.json").read_text())["results"])
    one, two = bodies
    assert [b["record"]["machine"]["processes"] for b in two] == [2, 2]
    assert one[0]["results"] == two[0]["results"], (
        "results must be identical, because confusion matrices add up exactly"
    )
    assert one[1]["numbers"] == two[1]["numbers"]
    names = [tmp_path / f"eval{n}/inference/dubai_val_predictions/sem_seg_predictions.json" for n in (1, 2)]
    rows = [json.loads(path.read_text()) for path in names]
    key = lambda row: (row["file_name"], row["category_id"])  # noqa: E731
    assert sorted(rows[0], key=key) == sorted(rows[1], key=key)


def test_a_model_is_not_asked_what_it_cannot(run, dubai, questions):
    code, out, body = run("DATASETS.TEST", "rsivqa_test")
    assert code == 2
    assert "SkySenseO does not support vqa; set MODEL.VQA.WEIGHTS to a model that does" in out
    assert body is None
    code, out, _ = run("TEST.CLASS_THRESHOLDS", "[['watr', 0.5]]")
    assert code == 2
    assert "TEST.CLASS_THRESHOLDS has ['watr'], which is no class of DATASETS.TEST" in out
    code, out, _ = run("TEST.PREDICTIONS", "['gif']")
    assert code == 2
    assert "unknown TEST.PREDICTIONS ['gif']: choose among coco, png" in out


def test_published_numbers_stand_beside_ours():
    """Published results refer to our data sets, and each of their protocols is described."""
    rows = {row.name: row for _, row in evaluation_splits()}
    published = read_published()
    for numbers in published["models"].values():
        assert set(numbers) <= set(rows)
        assert {rows[name].task for name in numbers} <= set(published["protocols"])
    record = {"protocol": {"name": ""}}
    body = {"data_set": "isaid_val", "row": "isaid", "task": "segmentation", "items": 1, "record": record}
    row = rows_of([{**body, "numbers": {"mIoU": 0.5}}], {"aid_all": "not found"})
    assert row[0]["SkySense-O, published"] == 43.92
    assert row[0]["best other, published"] == "29.17 (SegGPT (few-shot))"
    assert row[1] == {"data set": "aid_all", "beside": "not found"}


def test_an_absent_class_has_no_row():
    prediction = np.array([[0, 0, 2], [3, 3, 3]])
    assert [row["category_id"] for row in as_coco("x.jpg", prediction, 3)] == [0, 2], (
        "with three classes, label 3 means 'no class' and must have no row"
    )
