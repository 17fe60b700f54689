"""Tests of the training benchmark on a tiny model."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT
from training.test_engine import tiny


@pytest.mark.slow
def test_rows_of_batch_and_losses(call, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = ROOT / "configs/mini/finetune.yaml"
    options = ["--config-file", config, "--size", 64, "--names", 3, "--steps", 1, "--peak", 1]
    options += ["--output", tmp_path / "rows.json"]
    losses = ["--losses", "bce,bce+vision_centric"]
    code, out, err = call("tools/benchmark.py", "train", *options, *losses, *tiny(config))
    assert code == 0, err
    assert "samples/s" in out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["losses"] for row in rows] == ["bce", "bce+vision_centric"]
    assert all(row["samples/s"] > 0 and row["peak GiB"] > 0 and row["TFLOP/s"] > 0 for row in rows)
    assert rows[1]["loss"] > rows[0]["loss"]


def test_an_unknown_loss_is_named(call):
    code, _, err = call(
        "tools/benchmark.py", "train", "--config-file", ROOT / "configs/mini/finetune.yaml", "--losses", "bce+x"
    )
    assert code == 2
    assert "unknown losses ['x']: choose among bce, focal" in err
