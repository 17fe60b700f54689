"""Tests that benchmarks run and report plausible numbers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT
from modeling.test_published import SMALL_CONFIG
from tiny_sam3 import DETECTOR, SIDE

from skysense_o.inference.onnx import TOLERANCE
from tools.benchmarks.compare import REFERENCE, as_table, compare


def test_a_model_with_random_weights(call, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL_CONFIG)
    words = ("--config-file", tmp_path / "small.yaml", "--names", "1,3", "--size", 64, "--repeats", 1)
    words += ("--device", "cpu", "--precision", "fp32", "--all-names", "--json", tmp_path / "model.json")
    code, out, err = call("tools/benchmark.py", "model", *words)
    assert code == 0, err
    assert "decoder: s (GFLOP; of peak)" in out
    rows = json.loads((tmp_path / "model.json").read_text())["rows"]
    assert [row["names"] for row in rows] == [1, 3]
    assert rows[1]["decoder"]["gflop"] > rows[0]["decoder"]["gflop"] > 0
    assert rows[0]["image"]["gflop"] == rows[1]["image"]["gflop"]


@pytest.mark.parametrize("config", ["sam3/sam3.yaml", "training_free/openclip.yaml"])
def test_models_of_others_with_random_weights(call, tmp_path, monkeypatch, config):
    """The benchmark runs other projects' models with random weights: at published sizes, but SAM 3 at a tiny size."""
    tiny = transformers.Sam3Config(**DETECTOR)
    monkeypatch.setattr(transformers, "Sam3Config", lambda: tiny)
    processor = transformers.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})
    monkeypatch.setattr(transformers, "Sam3ImageProcessor", lambda: processor)
    words = ("--config-file", ROOT / "configs" / config, "--names", "2,5", "--size", 64, "--repeats", 1)
    words += ("--device", "cpu", "--precision", "fp32", "--json", tmp_path / "model.json")
    code, _, err = call("tools/benchmark.py", "model", *words)
    assert code == 0, err
    rows = json.loads((tmp_path / "model.json").read_text())["rows"]
    assert rows[0]["image"]["gflop"] == rows[1]["image"]["gflop"] > 0
    assert rows[0]["text"]["gflop"] > 0
    assert rows[1]["decoder"]["gflop"] > 2 * rows[0]["decoder"]["gflop"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [("model", "--names", "1", "--size", "64", "--repeats", "1"), ("load",)])
def test_benchmarks_of_models_run_in_a_process_of_their_own(tmp_path, words):
    """Other tests import all models, which a benchmark must do itself."""
    (tmp_path / "small.yaml").write_text(SMALL_CONFIG)
    command = [sys.executable, "tools/benchmark.py", *words, "--config-file", tmp_path / "small.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_loading_a_random_checkpoint(call, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL_CONFIG)
    words = ("--config-file", tmp_path / "small.yaml", "--json", tmp_path / "load.json")
    code, out, err = call("tools/benchmark.py", "load", *words)
    assert code == 0, err
    assert "model_final.pth, fp32" in out
    numbers = json.loads((tmp_path / "load.json").read_text())
    assert 0 < numbers["load"] <= numbers["read"]


def test_variants_take_turns():
    calls = []

    def variant(name, plus):
        return lambda image, text: calls.append(name) or image + plus

    found = {REFERENCE: variant("a", 0), "other": variant("b", 0.25)}
    rows = compare(found, torch.zeros(1, 2, 4, 4), torch.zeros(1), repeats=3)
    assert calls == ["a", "b"] * 4
    assert [row["difference"] for row in rows] == [0, 0.25]
    assert [row["changed"] for row in rows] == [0, 0]
    assert rows[0]["ratio"] == rows[0]["cpu_ratio"] == (1, 1, 1)
    for row in rows:
        median, least, greatest = row["wall_ms"]
        assert 0 < least <= median <= greatest
    assert "other" in as_table(rows)


def test_a_model_with_random_weights_plain_and_packed(call, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL_CONFIG)
    words = ("--config-file", tmp_path / "small.yaml", "--names", 3, "--repeats", 1, "--json", tmp_path / "rows.json")
    code, out, err = call("tools/benchmark.py", "compare", *words)
    assert code == 0, err
    assert "other labels" in out
    rows = {row["variant"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert {"torch fp32", "torch fp32 packed"} <= set(rows)
    assert rows["torch fp32 packed"]["difference"] < TOLERANCE


@pytest.mark.slow
def test_backends_agree_with_torch(call, tmp_path):
    """ONNX Runtime and OpenVINO agree with torch in fp32; bf16 is only timed, and only on CPUs that support it."""
    words = ("--size", 64, "--names", 3, "--repeats", 1, "--json", tmp_path / "compare.json")
    code, out, err = call("tools/benchmark.py", "compare", *words)
    assert code == 0, err
    assert "times as fast" in out
    rows = {row["variant"]: row for row in json.loads((tmp_path / "compare.json").read_text())["rows"]}
    assert {"torch fp32", "onnxruntime fp32", "openvino fp32"} <= set(rows)
    assert all(row["difference"] < TOLERANCE for name, row in rows.items() if name.endswith("fp32"))


def test_a_size_that_does_not_fit_is_an_error(call):
    code, _, err = call("tools/benchmark.py", "compare", "--size", 100)
    assert code != 0
    assert "--size 100: give a multiple of 32" in err


def test_an_unknown_topic_lists_the_topics(call):
    code, _, err = call("tools/benchmark.py", "speed")
    assert code == 2
    assert "'model', 'compare', 'load', 'data', 'train', 'scene'" in err
