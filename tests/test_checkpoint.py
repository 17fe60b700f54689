"""Tests of checkpoints: mismatches are listed, and no code in a checkpoint is executed."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skysense_o import Predictor
from skysense_o.checkpoint import (
    LARGE,
    WeightsError,
    build_with_weights,
    find_weights,
    load_weights,
    read_weights,
    save_weights,
    weights_hash,
)


def test_round_trip_in_half_precision(small_model, cfg, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(small_model, path, cfg.dump(), torch.float16)
    other = copy.deepcopy(small_model)
    for parameter in other.sem_seg_head.parameters():
        parameter.data.zero_()
    report = load_weights(other, path)
    assert not report.missing
    for (name, a), b in zip(small_model.state_dict().items(), other.state_dict().values()):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3, msg=name)


def test_weights_of_installed_packages_are_not_written(small_model, cfg, tmp_path):
    save_weights(small_model, tmp_path / "w.safetensors", cfg.dump())
    names = list(load_file(tmp_path / "w.safetensors"))
    assert not [n for n in names if n.startswith("tower.text.")]
    assert [n for n in names if n.startswith("tower.image.")]


def test_the_file_is_enough_to_predict(small_model, cfg, tmp_path):
    save_weights(small_model, tmp_path / "w.safetensors", cfg.dump())
    predictor = Predictor.from_pretrained(tmp_path / "w.safetensors", device="cpu")
    image = torch.randint(0, 255, (40, 50, 3), dtype=torch.uint8).numpy()
    assert predictor(image, "road,tree").labels.shape == (40, 50)


def test_weights_of_another_model_list_both_sides(small_model, tmp_path):
    state = {k: v.clone() for k, v in small_model.state_dict().items()}
    state["something.else"] = torch.zeros(1)
    del state["sem_seg_head.skip1.bias"]
    state["sem_seg_head.skip2.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as error:
        load_weights(small_model, tmp_path / "w.safetensors")
    text = str(error.value)
    assert "1 missing: sem_seg_head.skip1.bias" in text
    assert "1 unexpected: something.else" in text
    assert "1 misshaped: sem_seg_head.skip2.bias (7,) for (4,)" in text


def test_missing_weights_list_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match="no weights at 'nowhere.pth'.*'mini'"):
        find_weights("nowhere.pth")


def test_an_unknown_file_type_is_an_error(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"ends in '.onnx': weights are read from .safetensors"):
        find_weights(tmp_path / "w.onnx")


def test_an_old_pickle_is_read_only_when_trusted(tmp_path, caplog):
    """A pickle of NumPy arrays, as in Detectron2's model zoo, is read only with --trust-checkpoint."""
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"model": {"a": np.arange(3.0)}, "matching_heuristics": True}))
    with pytest.raises(WeightsError, match="from a source that you trust: --trust-checkpoint"):
        read_weights(find_weights(tmp_path / "old.pkl"))
    assert read_weights(find_weights(tmp_path / "old.pkl"), trust=True)["a"].tolist() == [0, 1, 2]
    assert "any code in it is executed now" in caplog.text


def test_other_entries_of_a_checkpoint_are_logged(tmp_path, caplog):
    torch.save({"model": {"a": torch.zeros(1)}, "optimizer": {}, "iteration": 3}, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        assert list(read_weights(tmp_path / "w.pth")) == ["a"]
    assert "also holds iteration, optimizer: ignored" in caplog.text


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Make a hub cache that contains one file, and switch the network off; return the file's path."""
    from huggingface_hub import constants

    repo = tmp_path / "hub/models--someone--weights"
    snapshot = repo / "snapshots/0123abc"
    (snapshot / "sub").mkdir(parents=True)
    save_file({"a": torch.ones(2)}, snapshot / "sub/w.safetensors")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot / "sub/w.safetensors"


def test_weights_from_the_hubs_cache(hub):
    address = "hf://someone/weights/sub/w.safetensors"
    assert read_weights(find_weights(address))["a"].tolist() == [1, 1]
    assert find_weights(f"{address}#sha256={weights_hash(hub)}").samefile(hub)


def test_another_hash_is_refused(hub):
    address = "hf://someone/weights/sub/w.safetensors"
    with pytest.raises(WeightsError, match=r"has sha256 \w{64}, not 0{64}: download the right file"):
        find_weights(f"{address}#sha256={'0' * 64}")
    with pytest.raises(WeightsError, match="#sha256=HASH does not have 64 hexadecimal digits"):
        find_weights(f"{address}#sha256=HASH")


def test_a_file_that_is_not_on_the_hub_gives_a_hint(hub):
    with pytest.raises(FileNotFoundError, match="hf://someone/weights/b.pth is not in the local cache.*HF_HUB_OFFLINE"):
        find_weights("hf://someone/weights/b.pth")
    with pytest.raises(WeightsError, match="'hf://someone' is not the address of a file: write hf://org/repo/file"):
        find_weights("hf://someone")


def test_a_model_is_built_around_its_weights(small_model, cfg, tmp_path):
    """A model uses the tensors that were read: float32 tensors stay memory-mapped, and `half` casts only large ones."""
    torch.save({"model": small_model.state_dict()}, tmp_path / "w.pth")
    whole, report = build_with_weights(cfg, tmp_path / "w.pth")
    assert not report.missing
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), small_model.state_dict().values()))
    assert not any(t.is_meta for t in (*whole.parameters(), *whole.buffers()))
    half, _ = build_with_weights(cfg, tmp_path / "w.pth", half=True)
    kinds = {t.dtype for t in half.parameters() if t.numel() > LARGE}
    assert kinds == {torch.bfloat16}
    assert all(t.dtype == torch.float32 for t in half.parameters() if t.dim() < 2)


class Evil:
    def __reduce__(self):
        return (print, ("code of the checkpoint ran",))


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys, suffix):
    torch.save({"model": Evil()}, tmp_path / f"w{suffix}")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(tmp_path / f"w{suffix}")
    (tmp_path / f"raw{suffix}").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(tmp_path / f"raw{suffix}")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_says_so(small_model, cfg, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"model": small_model.sem_seg_head.state_dict()}, path)
    else:
        save_weights(small_model, path, cfg.dump())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="not a readable checkpoint.*is it complete"):
        read_weights(path)


def test_a_file_without_tensors_says_so(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no table of tensors"):
        read_weights(tmp_path / "w.pth")


def test_a_file_without_config_asks_for_it(small_model, tmp_path):
    torch.save({"model": small_model.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not hold its config"):
        Predictor.from_pretrained(tmp_path / "w.pth", device="cpu")


STATE = {"a.weight": torch.arange(3.0), "b.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("blob", "zipped"),
    [
        (STATE, False),
        ({"model": STATE}, False),
        ({"state_dict": STATE, "epoch": 3, "model": "resnet"}, True),
        ({"model_state_dict": STATE, "optimizer_state_dict": {"state": {0: {"step": 1}}}}, True),
        ({"module": {"module": STATE}}, True),
        ({"model": {"_orig_mod." + name: t for name, t in STATE.items()}}, True),
        ({"module._orig_mod." + name: t for name, t in STATE.items()}, True),
        ({name.replace(".", "._orig_mod."): t for name, t in STATE.items()}, True),
        ({"state_dict": {"model." + name: t for name, t in STATE.items()}}, True),
        ({**STATE, "epoch": 3, "arch": "vit"}, True),
    ],
)
def test_checkpoints_of_other_programs_are_read(tmp_path, blob, zipped):
    torch.save(blob, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "w.pth")
    assert found.keys() == STATE.keys()
    assert found["a.weight"].tolist() == [0, 1, 2]


def test_the_state_of_an_optimizer_is_refused(tmp_path):
    torch.save({0: torch.ones(1), 1: torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match="w.pth has a tensor whose name is 0 and not text.*give the checkpoint of the model"
    ):
        read_weights(tmp_path / "w.pth")


def test_one_name_with_and_without_prefix_is_refused(tmp_path):
    torch.save({"a": torch.ones(1), "module.a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds 'a' twice"):
        read_weights(tmp_path / "w.pth")


def problem_of(path) -> WeightsError | None:
    try:
        read_weights(path)
    except WeightsError as error:
        return error
    return None


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_pth_names_its_path(tmp_path, zipped):
    """Regression: damaged .pth files used to raise IndexError, KeyError or UnicodeDecodeError without their path."""
    torch.save({"model": STATE}, tmp_path / "good.pth", _use_new_zipfile_serialization=zipped)
    good, rng, kinds = (tmp_path / "good.pth").read_bytes(), np.random.default_rng(0), set()
    for _ in range(150):
        data = bytearray(good)
        for place in rng.integers(0, min(len(data), 400), 3):
            data[place] = rng.integers(0, 256)
        (tmp_path / "bad.pth").write_bytes(data)
        problem = problem_of(tmp_path / "bad.pth")
        if problem is not None:
            assert str(tmp_path / "bad.pth") in str(problem)
            assert "\n" not in str(problem)
            kinds.add(type(problem.__cause__))
    assert kinds & {IndexError, KeyError, UnicodeDecodeError, AttributeError, TypeError}


def test_numbers_of_numpy_keep_their_shape(tmp_path):
    """Zero-dimensional NumPy numbers, such as the batch counter of a batch norm, stay zero-dimensional."""
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"n": np.array(3), "a": np.ones((2, 3)).T}}))
    found = read_weights(tmp_path / "w.pkl", trust=True)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"n": (), "a": (3, 2)}
