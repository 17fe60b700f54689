"""Tests of tools/doctor.py."""

from __future__ import annotations

import sys

from conftest import load_script

from skysense_o.cli import doctor


def run_doctor(monkeypatch, capsys) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    code = load_script("tools/doctor.py").run()
    return code, capsys.readouterr().out


def test_doctor_lists_installed_weights_and_data(monkeypatch, capsys, dubai):
    code, text = run_doctor(monkeypatch, capsys)
    assert code == 0
    assert "The demo can run: bash demo.sh" in text
    assert "weights 'mini'" in text
    assert "4 records in" in text


def test_doctor_says_how_to_get_missing_data(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    code, text = run_doctor(monkeypatch, capsys)
    assert code == 0, "missing data must not be an error, because the demo needs none"
    assert "absent   data" in text
    assert "set DETECTRON2_DATASETS" in text


def test_doctor_fails_without_weights(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("skysense_o.checkpoint.SHIPPED", tmp_path)
    code, text = run_doctor(monkeypatch, capsys)
    assert code == 1
    assert "MISSING  weights" in text
    assert "The demo cannot run." in text


def test_doctor_names_what_is_cached_of_the_strong_models_and_how_to_get_the_rest(monkeypatch, capsys, tmp_path):
    snapshot = tmp_path / "models--facebook--sam3" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--facebook--sam3" / "refs").mkdir()
    (tmp_path / "models--facebook--sam3" / "refs" / "main").write_text("0123abcd")
    (snapshot / "model.safetensors").write_bytes(b"0" * 2_000_000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checks = doctor._Checks()
    doctor._check_strong_models(checks)
    sam3, *others = capsys.readouterr().out.splitlines()
    assert "ok       SAM 3" in sam3
    assert "cached, 2 MB: --weights hf://facebook/sam3" in sam3
    for line, name in zip(others, ("RemoteCLIP", "SigLIP", "DINOv2"), strict=True):
        assert f"absent   {name}" in line
        assert "with a network: hf download" in line
    assert not checks.broken
