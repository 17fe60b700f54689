"""Tests that ONNX Runtime and OpenVINO give torch's masks, and that a weights file is exported only once."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config
from modeling.test_published import build

from skysense_o import Predictor
from skysense_o.checkpoint import save_weights
from skysense_o.config import model_config
from skysense_o.device import has_bf16
from skysense_o.inference import backend
from skysense_o.inference.sliding import segment_array
from skysense_o.meta_arch import SkySenseO
from skysense_o.vocabulary import Vocabulary

WORDS = "building|house,road,water"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Save a small random model and return its path; all tests of this module share the cache for its exports."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKYSENSE_O_CACHE", str(folder / "cache"))
        cfg = small_config()
        save_weights(SkySenseO(cfg), folder / "small.safetensors", model_config(cfg).dump())
        yield folder / "small.safetensors"


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_probabilities_are_those_of_torch_for_images_of_any_size(weights, name):
    torch_one, other = (Predictor.from_pretrained(weights, "cpu", backend=b) for b in ("torch", name))
    assert (torch_one.backend, other.backend) == ("torch", name)
    for seed, size in enumerate([(64, 96, 3), (45, 130, 3)]):
        image = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        want = torch_one(image, WORDS, probabilities=True).probabilities
        encoded = other.set_image(image)
        got = other(encoded, WORDS, probabilities=True).probabilities
        assert np.abs(got - want).max() < 1e-4
        assert encoded.dense.shape == torch_one.set_image(image).dense.shape


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_windows_in_several_threads_are_those_in_one(weights, name, monkeypatch):
    image = np.random.default_rng(3).integers(0, 256, (3, 150, 200), dtype=np.uint8)
    predictor, vocabulary = Predictor.from_pretrained(weights, "cpu", backend=name), Vocabulary.parse(WORDS)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr("skysense_o.inference.sliding.thread_count", lambda *_, n=threads: n)
        found.append(segment_array(image, vocabulary, predictor.model, window=64))
    assert np.abs(found[0][1] - found[1][1]).max() < 1e-5
    assert (found[0][0] == found[1][0]).mean() > 0.999


def test_an_export_is_made_once_and_again_if_its_bytes_have_changed(weights, monkeypatch):
    made = []
    real = backend._export
    monkeypatch.setattr(backend, "_export", lambda model, path: (made.append(path), real(model, path)))
    predictor = Predictor.from_pretrained(weights, "cpu", backend="onnx")
    made.clear()
    path = backend.exported_file(predictor)
    assert not made
    path.write_bytes(path.read_bytes()[:-1])
    assert backend.exported_file(predictor) == path
    assert [one.parent for one in made] == [path.parent]
    assert sorted(one.suffix for one in path.parent.glob(f"{path.stem}*")) == [".json", ".onnx"], (
        "the export must leave no other files"
    )
    assert predictor.sha256[:32] in path.name


def test_another_config_of_the_same_weights_has_an_export_of_its_own(weights, monkeypatch):
    """Each config needs its own export, because a key such as HEADS changes the graph but no tensor's shape."""
    predictor = Predictor.from_pretrained(weights, "cpu")
    monkeypatch.setattr(backend, "_export", lambda model, path: path.write_bytes(b"a graph"))
    first = backend.exported_file(predictor)
    predictor.config += "\n# another"
    assert backend.exported_file(predictor) != first


def test_auto_is_torch_where_the_export_cannot_be_kept(weights, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SKYSENSE_O_CACHE", str(tmp_path / "file/cache"))
    assert Predictor.from_pretrained(weights, "cpu", backend="auto").backend == "torch"
    assert "backend torch instead of onnx" in caplog.text


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor does not multiply bfloat16")
def test_openvino_in_bf16_labels_as_torch_in_fp32_up_to_rounding(weights):
    image = np.random.default_rng(5).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    want = Predictor.from_pretrained(weights, "cpu")(image, WORDS, probabilities=True).probabilities
    half = Predictor.from_pretrained(weights, "cpu", precision="bf16", backend="openvino")
    assert np.abs(half(image, WORDS, probabilities=True).probabilities - want).max() < 0.05


def test_what_a_backend_cannot_run_is_an_error_and_auto_takes_another(weights, monkeypatch):
    with pytest.raises(ValueError, match="backend 'tensorrt' is not known: torch, onnx, openvino, auto"):
        Predictor.from_pretrained(weights, "cpu", backend="tensorrt")
    with pytest.raises(ValueError, match="backend onnx computes in fp32, and the precision is bf16: use fp32, or"):
        Predictor.from_pretrained(weights, "cpu", precision="bf16", backend="onnx")
    with pytest.raises(
        ValueError, match=r"openvino runs MiniTower with SAMMaskHead, and the model is SkySenseCLIP with"
    ):
        backend.use_backend(Predictor(build()), "openvino")
    with pytest.raises(ValueError, match=r"backend onnx needs weights from a file.*: use Predictor.from_pretrained"):
        backend.use_backend(Predictor(SkySenseO(small_config())), "onnx")
    assert Predictor.from_pretrained(weights, "cpu", backend="auto").backend == "onnx"
    monkeypatch.setattr(backend, "has_amx", lambda: False)
    assert Predictor.from_pretrained(weights, "cpu", precision="bf16", backend="auto").backend == "torch"
    monkeypatch.setattr(backend, "has_amx", lambda: True)
    assert Predictor.from_pretrained(weights, "cpu", precision="bf16", backend="auto").backend == "openvino"
    assert backend.use_backend(Predictor(build()), "auto") == "torch"

    monkeypatch.setattr(backend, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(
        ModuleNotFoundError, match="backend onnx needs onnxruntime, which is not installed: pip install"
    ):
        Predictor.from_pretrained(weights, "cpu", backend="onnx")
    assert Predictor.from_pretrained(weights, "cpu", backend="auto").backend == "torch"
