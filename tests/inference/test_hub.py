"""Tests of models in folders and in repositories of the Hugging Face hub, without a network."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from conftest import small_config

from skysense_o import Predictor
from skysense_o.config import model_config
from skysense_o.meta_arch import SkySenseO

IMAGE = torch.arange(3 * 40 * 50).reshape(40, 50, 3).remainder(251).to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(3)
    cfg = small_config()
    cfg.MODEL.KNOWN.CLASSES, cfg.MODEL.KNOWN.DATASETS = ["road|street", "tree"], ["dubai"]
    return Predictor(SkySenseO(cfg), "tiny", config=model_config(cfg).dump())


def equal(a: Predictor, b: Predictor) -> bool:
    """Return whether two predictors agree up to rounding, which differs because loading folds batch norms."""
    return np.allclose(a(IMAGE, "road,tree").score, b(IMAGE, "road,tree").score, atol=1e-4)


@pytest.fixture
def cache(predictor, tmp_path):
    """Return a hub cache in the state after a download of org/tiny."""
    repository = tmp_path / "hub" / "models--org--tiny"
    predictor.save_pretrained(repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abc")
    return tmp_path / "hub"


def test_a_folder_holds_the_model_its_config_and_a_card(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "tiny")
    assert {p.name for p in (tmp_path / "tiny").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((tmp_path / "tiny/config.json").read_text())
    assert config["library_name"] == "skysense_o"
    assert config["model"]["TOWER"]["WIDTH"] == 16
    card = (tmp_path / "tiny/README.md").read_text()
    assert card.startswith("---\nlibrary_name: skysense_o\n")
    assert "- Classes: road, tree" in card
    assert "- Trained on: dubai" in card
    again = Predictor.from_pretrained(tmp_path / "tiny", device="cpu")
    assert equal(predictor, again)
    again.save_pretrained(tmp_path / "again")
    names = ("config.json", "model.safetensors")
    assert [(tmp_path / "again" / n).read_bytes() for n in names] == [
        (tmp_path / "tiny" / n).read_bytes() for n in names
    ]


def test_shipped_weights_keep_their_card_and_their_size(mini, tmp_path):
    mini.save_pretrained(tmp_path / "mini")
    assert (tmp_path / "mini/model.safetensors").stat().st_size == mini.path.stat().st_size, (
        "weights must be saved in half precision, so the file must have the same size"
    )
    card = (tmp_path / "mini/README.md").read_text()
    assert "Trained on" in card
    assert "](../" not in card
    assert "mini.safetensors" not in card, "the file has another name here"


def test_a_repository_in_the_cache(predictor, cache):
    again = Predictor.from_pretrained("org/tiny", device="cpu", cache_dir=cache, local_files_only=True)
    assert again.source == "org/tiny"
    assert equal(predictor, again)


def test_without_a_network_one_line_says_so(cache):
    with pytest.raises(FileNotFoundError, match="org/other is not in the local cache and could not be downloaded") as e:
        Predictor.from_pretrained("org/other", cache_dir=cache, local_files_only=True)
    assert "\n" not in str(e.value)


def test_retries_of_a_download_are_not_told(cache, monkeypatch, capfd, caplog):
    def download(*args, **options):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1 s")
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(no network\)"):
        Predictor.from_pretrained("hf://org/other/a.safetensors")
    assert "Retrying" not in "".join((*capfd.readouterr(), caplog.text))
    assert not logging.getLogger("huggingface_hub.utils._http").filters


def test_a_folder_without_weights(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights at .*tiny"):
        Predictor.from_pretrained(tmp_path / "tiny")


def test_push_to_hub_uploads_the_folder(predictor, tmp_path, monkeypatch):
    class Hub:
        def __init__(self, token=None) -> None:
            pass

        def create_repo(self, repo_id, **options):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / "pushed")
            return f"https://example.org/{repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    assert predictor.push_to_hub("org/tiny") == "https://example.org/org/tiny"
    assert equal(predictor, Predictor.from_pretrained(tmp_path / "pushed", device="cpu"))


def test_a_model_without_a_config_cannot_be_saved(small_model, tmp_path):
    with pytest.raises(ValueError, match="has no config of this project"):
        Predictor(small_model).save_pretrained(tmp_path / "a")
