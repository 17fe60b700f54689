"""Tests that weights before and after a fine-tuning are averaged into one file, which loads like any weights file."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import save_file

from skysense_o.checkpoint import read_config, read_weights

TOOL = "tools/average_weights.py"


@pytest.fixture
def files(tmp_path):
    first = {"a": torch.full((2, 2), 4.0).half(), "new": torch.ones(3), "steps": torch.tensor(7)}
    second = {"a": torch.zeros(2, 2).half(), "old": torch.ones(3), "steps": torch.tensor(3)}
    for name, state in (("first", first), ("second", second)):
        save_file(state, tmp_path / f"{name}.safetensors", metadata={"format": "pt", "config": f"NAME: {name}\n"})
    return tmp_path / "first.safetensors", tmp_path / "second.safetensors"


def test_the_share_of_the_first_file_counts(files, call, tmp_path):
    code, said, err = call(TOOL, *files, tmp_path / "mean.safetensors", "--share", "0.75")
    assert code == 0, err
    assert "1 of 3 tensors averaged" in said
    mean = read_weights(tmp_path / "mean.safetensors")
    assert mean["a"].tolist() == [[3, 3], [3, 3]]
    assert mean["a"].dtype == torch.float16
    assert int(mean["steps"]) == 7
    assert set(mean) == {"a", "new", "steps"}
    assert "first" in read_config(tmp_path / "mean.safetensors")


def test_the_calibration_of_presence_is_not_that_of_the_average(files, call, tmp_path):
    config = "MODEL:\n  GSD: 0.5\n  KNOWN:\n    CLASSES: [road]\n    PRESENCE: [0.5, -1.0]\n"
    state = {"a": torch.full((2, 2), 4.0).half()}
    save_file(state, tmp_path / "calibrated.safetensors", metadata={"format": "pt", "config": config})
    code, _, err = call(TOOL, tmp_path / "calibrated.safetensors", files[1], tmp_path / "mean.safetensors")
    assert code == 0, err
    stored = yaml.safe_load(read_config(tmp_path / "mean.safetensors"))
    assert stored == {"MODEL": {"GSD": 0.5, "KNOWN": {"CLASSES": ["road"]}}}


@pytest.mark.parametrize(
    ("share", "target", "says"),
    [("1.5", "mean.safetensors", "--share 1.5 is out of range: 0 to 1"), ("0.5", "mean.pth", "write .safetensors")],
)
def test_wrong_arguments_are_errors(files, call, tmp_path, share, target, says):
    code, _, err = call(TOOL, *files, tmp_path / target, "--share", share)
    assert code == 2
    assert says in err


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"a": torch.zeros(5)}, "a has another shape: give two files of one model"),
        ({"b": torch.zeros(5)}, "no tensor has the same name: give two files of one model"),
    ],
)
def test_files_of_different_models_are_an_error(files, call, tmp_path, state, says):
    save_file(state, tmp_path / "other.safetensors")
    code, _, err = call(TOOL, files[0], tmp_path / "other.safetensors", tmp_path / "mean.safetensors")
    assert code == 2
    assert says in err
