"""Weights fit or say why, and none of their code runs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from skysense_o import Predictor
from skysense_o.checkpoint import WeightsError, find_weights, load_weights, read_weights, save_weights


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


def test_what_a_package_brings_is_not_written(small_model, cfg, tmp_path):
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


def test_missing_weights_name_what_there_is():
    with pytest.raises(FileNotFoundError, match="no weights at 'nowhere.pth'.*'mini'"):
        find_weights("nowhere.pth")


def test_an_unknown_type_is_refused(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"ends in '.pkl': weights are read from .safetensors"):
        find_weights(tmp_path / "w.pkl")


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
