"""Tests of loading SAM 3 from a folder or the hub's cache without a network, and the error when it is unavailable."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny_sam3 import make_detector, make_whole
from transformers.utils import logging

from skysense_o import Predictor
from skysense_o.checkpoint import find_weights, weights_hash
from skysense_o.config import default_config, merge_file, model_config
from skysense_o.training.run import build_model

logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_detector(tmp_path_factory.mktemp("sam3"))


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (45, 71, 3), dtype=np.uint8)


def test_a_folder_is_weights(folder, image):
    predictor = Predictor.from_pretrained(folder, "cpu")
    assert type(predictor.model).__name__ == "Sam3"
    assert predictor.model.presence == "window"
    assert predictor.sha256 == weights_hash(folder)
    found = predictor(image, "road,tree")
    assert found.labels.shape == (45, 71)
    assert set(found.presence) == {"road", "tree"}


def test_the_hash_of_a_folder_follows_its_weights(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert weights_hash(tmp_path / "copy") == weights_hash(folder)
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert weights_hash(tmp_path / "copy") != weights_hash(folder)


def test_a_whole_folder_has_clicks_and_the_detector_alone_has_not(folder, tmp_path):
    assert Predictor.from_pretrained(make_whole(tmp_path / "whole"), "cpu").model.takes_prompts
    assert not Predictor.from_pretrained(folder, "cpu").model.takes_prompts


def test_the_config_file_changes_how_it_answers(folder, tmp_path, image):
    (tmp_path / "plain.yaml").write_text("MODEL: {META_ARCHITECTURE: Sam3, SAM3: {FUSE: semantic, PRESENCE: none}}\n")
    plain = Predictor.from_pretrained(folder, "cpu", tmp_path / "plain.yaml")
    assert (plain.model.fuse, plain.model.presence) == ("semantic", "none")
    assert not np.allclose(
        plain(image, "road,tree").score, Predictor.from_pretrained(folder, "cpu")(image, "road,tree").score
    )


def test_evaluation_builds_it_from_the_config(folder):
    cfg = default_config()
    merge_file(cfg, ROOT / "configs" / "sam3" / "sam3.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(folder), "cpu"
    model = build_model(cfg)
    assert (model.fuse, model.presence, model.phrase_chunk) == ("max", "window", 4)
    assert "FUSE: max" in model_config(cfg).dump()
    assert "SAM3" not in model_config(default_config()).dump()


def test_run_eval_on_a_folder(folder, dubai, tmp_path, monkeypatch):
    """The command of run_eval.sh evaluates a SAM 3 folder on the tiny Dubai; a second call reads the stored result."""
    command = [
        sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(ROOT / "configs/sam3/sam3.yaml"),
        "--num-gpus", "1", "--eval-only", "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", str(folder),
        "MODEL.DEVICE", "cpu", "TEST.WINDOW", "-1", "TEST.IMAGES", "0",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    body = json.loads((tmp_path / "out" / "inference" / "dubai_val.json").read_text())
    assert 0 <= body["numbers"]["mIoU"] <= 1
    assert body["record"]["weights_sha256"] == weights_hash(folder)


def cached(home, folder):
    """Make the hub's cache in the state after a download of facebook/sam3."""
    repo = home / "hub" / "models--facebook--sam3"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123abcd")
    shutil.copytree(folder, repo / "snapshots" / "0123abcd")


def test_the_hubs_cache_is_enough_without_a_network(folder, tmp_path, image):
    cached(tmp_path, folder)
    code = (
        "import numpy as np; from skysense_o import Predictor\n"
        "p = Predictor.from_pretrained('hf://facebook/sam3', 'cpu')\n"
        "print(type(p.model).__name__, p(np.zeros((40, 50, 3), np.uint8), 'road,tree').labels.shape)"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "Sam3 (40, 50)", done.stderr[-2000:]


def test_offline_without_a_cache_is_one_clear_line(tmp_path):
    command = [
        sys.executable, "demo/demo.py", "--input", "demo/yellowstone_0.4m.jpg", "--weights", "hf://facebook/sam3",
        "--classes", "tree", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.strip().split("\n") if line.startswith("error")]
    assert "hf://facebook/sam3 is not in the local cache and could not be downloaded" in line
    assert "HF_TOKEN (some repositories ask you to accept their licence first)" in line
    assert "Traceback" not in done.stderr


def test_folders_that_are_not_sam3_or_not_whole(folder, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a 'bert', not SAM 3"):
        Predictor.from_pretrained(tmp_path / "bert", "cpu")
    with pytest.raises(FileNotFoundError, match="no weights at .*a folder with a config.json"):
        find_weights(tmp_path)
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="lacks what Sam3Processor.save_pretrained writes"):
        Predictor.from_pretrained(tmp_path / "bare", "cpu")
    shutil.copytree(folder, tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is the folder complete"):
        Predictor.from_pretrained(tmp_path / "cut", "cpu")
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "short")
    state = load_file(tmp_path / "short" / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "semantic_projection" not in k},
        tmp_path / "short" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="lacks 2 parameters of Sam3Model, such as .*semantic_projection"):
        Predictor.from_pretrained(tmp_path / "short", "cpu")


def test_a_config_without_weights_says_what_to_give():
    cfg = default_config()
    cfg.MODEL.META_ARCHITECTURE = "Sam3"
    with pytest.raises(ValueError, match="Sam3 needs MODEL.WEIGHTS: hf://facebook/sam3, or a folder of it"):
        build_model(cfg)
    cfg.MODEL.WEIGHTS = "mini"
    with pytest.raises(ValueError, match="is a file: Sam3 needs the folder"):
        build_model(cfg)


def test_the_data_engines_commands(call, folder, tmp_path, image):
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "a.png")
    work, words = ("--work", tmp_path / "work"), ("--weights", folder, "--device", "cpu", "--classes", "road,tree")
    for step in (
        ("collect", *work, "--input", tmp_path / "a.png"),
        ("propose", *work, *words, "--method", "words", "--least", 10),
        ("name", *work, *words, "--by", "masks"),
    ):
        code, _, err = call("tools/data_engine.py", *step)
        assert code == 0, err
    (path,) = (tmp_path / "work" / "names").glob("*.json")
    assert {entry["name"] for entry in json.loads(path.read_text())} <= {"road", "tree"}


def test_the_data_engine_works_with_it(folder, tmp_path, image):
    from PIL import Image

    from skysense_o.data_engine.collect import collect
    from skysense_o.data_engine.name import name_regions
    from skysense_o.data_engine.namers import VocabularyNamer
    from skysense_o.data_engine.propose import propose, proposer
    from skysense_o.data_engine.work_folder import WorkFolder
    from skysense_o.vocabulary import Vocabulary

    Image.fromarray(image).save(tmp_path / "a.png")
    work, words = WorkFolder(tmp_path / "work"), Vocabulary.parse("road,tree")
    collect(work, [tmp_path / "a.png"], side=128)
    predictor = Predictor.from_pretrained(folder, "cpu")
    assert propose(work, proposer("words", predictor, vocabulary=words), least=10) == []
    assert name_regions(work, VocabularyNamer(predictor, words), predictor.model) == []
    (path,) = (tmp_path / "work" / "names").glob("*.json")
    named = json.loads(path.read_text())
    assert named
    assert all(entry["name"] in ("road", "tree") and 0 < entry["confidence"] <= 1 for entry in named)
    with torch.inference_mode():
        propose(work, proposer("superpixels", predictor), least=10)
