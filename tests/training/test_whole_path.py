"""Tests of training, resuming, evaluating and predicting by the real command lines on tiny data."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

SMALL_KEYS = {
    "MODEL.TOWER.WIDTH": 16,
    "MODEL.SEM_SEG_HEAD.WIDTH": 32,
    "MODEL.SEM_SEG_HEAD.HEADS": 4,
    "MODEL.SEM_SEG_HEAD.MLP": 64,
    "MODEL.DEVICE": "cpu",
    "INPUT.CROP_SIZE": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.WARMUP_ITERS": 1,
    "TEST.EVAL_PERIOD": 3,
    "DATALOADER.NUM_WORKERS": 0,
}
SMALL = [str(word) for pair in SMALL_KEYS.items() for word in pair]


def command(*words, cwd) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


def train(folder, *words, cwd, gpus=1, resume=False):
    flags = ["--num-gpus", gpus, *(["--resume"] if resume else [])]
    script, config = ROOT / "tools/train_net.py", ROOT / "configs/mini/finetune.yaml"
    return command(script, "--config-file", config, *flags, "OUTPUT_DIR", folder, *SMALL, *words, cwd=cwd)


def test_train_evaluate_demo(dubai, tmp_path):
    """The commands work in a folder other than the project's."""
    out = tmp_path / "run"
    done = train(out, "SOLVER.MAX_ITER", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "copypaste: mIoU,fwIoU,pACC" in done.stdout
    files = {p.name for p in out.iterdir()}
    assert {"model_0000002.pth", "model_final.pth", "model_best.pth", "model_final.safetensors"} <= files
    assert {"last_checkpoint", "metrics.json", "log.txt", "config.yaml", "inference"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert "loss_cross_entropy" in rows[-1]
    assert "dubai_val/mIoU" in rows[-1]
    assert "eta" in (out / "log.txt").read_text()
    assert "model" in torch.load(out / "model_final.pth", weights_only=True)
    assert (out / "inference/dubai_val_names_confusion.csv").read_text().startswith("truth")
    sheets = [path.name for path in (out / "inference/dubai_val_images").iterdir()]
    assert {name.split("_")[0] for name in sheets} >= {"best", "worst"}
    trained = json.loads((out / "inference/dubai_val.json").read_text())["results"]["names"]["mIoU"]

    words = ["--eval-only", "OUTPUT_DIR", tmp_path / "eval", *SMALL]
    weights = ["MODEL.WEIGHTS", out / "model_final.pth"]
    config = ["--config-file", ROOT / "configs/mini/finetune.yaml"]
    done = command(ROOT / "tools/train_net.py", *config, *words, *weights, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "eval/inference/dubai_val.json").read_text())["results"]["names"]["mIoU"]
    assert again == pytest.approx(trained, abs=1e-6)

    image = dubai / "images/tile5_001.jpg"
    options = ["--input", image, "--classes", "water,land", "--output", tmp_path / "demo"]
    done = command(ROOT / "demo/demo.py", *options, "--weights", out / "model_final.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo/tile5_001_overlay.png").is_file()


def weights(folder) -> dict:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.mark.slow
def test_a_resumed_run_ends_like_an_uninterrupted_one(dubai, tmp_path):
    """A run resumed after 3 of 6 steps ends with exactly the weights of an uninterrupted run."""
    assert train(tmp_path / "whole", "SOLVER.MAX_ITER", "6", cwd=tmp_path).returncode == 0
    assert train(tmp_path / "parts", "SOLVER.MAX_ITER", "6", cwd=tmp_path).returncode == 0
    (tmp_path / "parts/model_final.pth").unlink()
    (tmp_path / "parts/last_checkpoint").write_text("model_0000002.pth")
    done = train(tmp_path / "parts", "SOLVER.MAX_ITER", "6", cwd=tmp_path, resume=True)
    assert done.returncode == 0, done.stderr
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    done = train(tmp_path / "parts", "SOLVER.MAX_ITER", "6", cwd=tmp_path, resume=True)  # no step is left to train
    assert done.returncode == 0, done.stderr
    assert "copypaste: mIoU" in done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one(dubai, tmp_path):
    """Two processes end with the weights of a single process, up to rounding, if the total batch is the same."""
    plain = ("SOLVER.MAX_ITER", "2", "SOLVER.PRECISION", "no", "MODEL.TEXT_NOISE", "0.0", "TEST.EVAL_PERIOD", "0")
    assert train(tmp_path / "one", *plain, cwd=tmp_path).returncode == 0
    done = train(tmp_path / "two", *plain, cwd=tmp_path, gpus=2)
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    moved = [name for name in one if not torch.equal(one[name], two[name])]
    worst = max((float((one[name] - two[name]).abs().max()) for name in moved), default=0.0)
    assert worst < 2e-4, worst


TRAIN = "tools/train_net.py"
CONFIG = ("--config-file", ROOT / "configs/mini/finetune.yaml")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--config-file", "nowhere.yaml"), "no config at 'nowhere.yaml'"),
        ((*CONFIG, "SOLVER.STEPSIZE", "1"), "Non-existent key: SOLVER.STEPSIZE"),
        ((*CONFIG, "SOLVER.MAX_ITER", "5", "--resume"), "'--resume' is among the KEY VALUE pairs"),
        ((*CONFIG, "--eval-only", "MODEL.WEIGHTS", "nowhere.pth"), "no weights at 'nowhere.pth'"),
        ((*CONFIG, "--resume"), "nothing to resume in OUTPUT_DIR"),
        ((*CONFIG, "DATASETS.TRAIN", "('mars_train',)"), "unknown data set 'mars_train'"),
        (
            (*CONFIG, "--eval-only", "TEST.WORDS", "guess"),
            "unknown TEST.WORDS 'guess': choose names, synonyms or heldout",
        ),
        ((*CONFIG, "--eval-only", "TEST.WORDS", "heldout"), "TEST.HELDOUT_FILE '' is not a file"),
        ((*CONFIG, "MODEL.DEVICE", "cuda:7"), "device 'cuda:7' is not available"),
        ((*CONFIG, "DATASETS.TEST", "('mars_val',)"), "unknown data set 'mars_val'"),
        ((*CONFIG, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"), "CLIP_TYPE 'value': use full_model"),
        ((*CONFIG, "SOLVER.AMP.ENABLED", "True"), "use SOLVER.PRECISION"),
        ((*CONFIG, "MODEL.LOSS.PRESENCE", "0.0"), "leaves the presence head untrained"),
        (
            (*CONFIG, "MODEL.LOSS.CORRECTION", "1.0"),
            "CORRECTION needs SAMMaskHead with SEM_SEG_HEAD.PROMPTS and CLASS_MAPS",
        ),
        (
            (*CONFIG, "MODEL.SEM_SEG_HEAD.PROMPTS", "True"),
            "is trained by MODEL.LOSS.PROMPT or CORRECTION, and INPUT.PROMPTS",
        ),
        ((*CONFIG, "MODEL.LOSS.BAGS", "0.5"), "are for INPUT.MAPPER 'mixed', not 'labels'"),
        ((*CONFIG, "DATASETS.WEIGHTS", "(1, 2)"), "give one whole number, 1 or more, for each of the 1 sets"),
    ],
)
def test_mistakes_get_one_line_and_code_2(call, dubai, tmp_path, words, says):
    if "SOLVER.STEPSIZE" not in words and len(words) > 2:
        words = (*words, "OUTPUT_DIR", tmp_path / "run", "DATALOADER.NUM_WORKERS", "0")
    code, _, err = call(TRAIN, *words)
    assert code == 2
    assert says in err
    assert not (tmp_path / "run").exists(), "a run with a mistake in its arguments must write nothing"


def test_an_output_that_is_a_file(call, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = call(TRAIN, *CONFIG, "OUTPUT_DIR", tmp_path / "file")
    assert code == 2
    assert "is a file: give a folder" in err
