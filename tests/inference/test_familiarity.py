"""Tests that words missing from a model's training are reported once, and that weights store the training words."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skysense_o.config import default_config
from skysense_o.data.training_facts import training_facts
from skysense_o.inference.familiarity import FAR, TrainingWords, describe_unfamiliar
from skysense_o.inference.predictor import Predictor
from skysense_o.training.run import fill_known
from skysense_o.vocabulary import Vocabulary

AXES = {"river": [1, 0, 0], "stream": [1, 0.1, 0], "roof": [0, 1, 0], "creek": [1, 0.5, 0], "teapot": [0, 0.3, 1]}


@pytest.fixture
def tower():
    def encode_text(strings):
        return F.normalize(torch.tensor([AXES[s] for s in strings], dtype=torch.float32), dim=-1)

    return SimpleNamespace(
        encode_text=encode_text, dim=3, pixel_mean=torch.zeros(1), text_parameters=lambda: [torch.ones(1)]
    )


def test_trained_words_and_their_plurals_are_familiar(tower):
    words = TrainingWords(tower, ["river|stream", "roof"])
    assert words.unfamiliar(Vocabulary.parse("Rivers,roofs,creek|stream")) == {}


def test_a_new_word_gets_its_nearest_training_word(tower):
    found = TrainingWords(tower, ["river|stream", "roof"]).unfamiliar(Vocabulary.parse("creek,roof,teapot"))
    assert {name: nearest for name, (nearest, _) in found.items()} == {"creek": "stream", "teapot": "roof"}
    assert found["creek"][1] == pytest.approx(
        float(F.cosine_similarity(*map(torch.tensor, ([1, 0.5, 0], [1, 0.1, 0.0])), dim=0))
    )
    near, far = describe_unfamiliar(found)
    assert '"creek" is not a word of the training; the model takes it for something like "stream"' in near
    assert found["teapot"][1] < FAR
    assert '"teapot" is far from every training word' in far


def test_a_slip_gets_the_word_that_was_meant_and_not_the_nearest_meaning(tower):
    words = TrainingWords(tower, ["river|stream", "roof"])
    for slip, meant in {"rivr": "river", "Steams": "stream", "raiver": "river", "rofo": "roof"}.items():
        found = words.unfamiliar(Vocabulary.parse(slip))
        assert found == {slip: (meant, None)}
        assert describe_unfamiliar(found) == [f'"{slip}" is not a word of the training: did you mean "{meant}"?']
    assert words.unfamiliar(Vocabulary.parse("creek"))["creek"][1] is not None


def test_nobody_is_told_that_a_word_is_like_no_thing(tower):
    AXES["other"] = AXES["teapot"]
    words = TrainingWords(tower, ["river", "other|roof"])
    assert words.unfamiliar(Vocabulary.parse("teapot"))["teapot"][0] == "roof"
    assert words.unfamiliar(Vocabulary.parse("river,other")) == {}


def test_background_words_examples_and_unknown_trainings_are_not_judged(tower):
    vocabulary = Vocabulary.parse("river", "teapot").with_examples({"like this": torch.ones(3)})
    assert TrainingWords(tower, ["river"]).unfamiliar(vocabulary) == {}
    assert TrainingWords(tower, []).unfamiliar(Vocabulary.parse("teapot")) == {}


def test_the_predictor_warns_once(small_model, caplog):
    predictor = Predictor(small_model, known_classes=["road|street", "water"])
    image = np.zeros((32, 32, 3), np.uint8)
    with caplog.at_level(logging.WARNING):
        predictor(image, "street,teapot")
        predictor(image, "water,teapot")
    assert sum("teapot" in record.message for record in caplog.records) == 1
    assert not any("street" in record.message.split('"')[1] for record in caplog.records)


def test_facts_come_from_the_class_tables_and_the_concepts():
    classes, sets, gsd = training_facts(["dubai_train", "resisc12_train"])
    names = {entry.partition("|")[0] for entry in classes}
    assert {"water", "building", "wetland", "river"} <= names, "the classes of both data sets must be listed"
    assert "road" in names
    assert "not road" not in names
    assert sets == ["dubai_train", "resisc12_train"]
    assert gsd == [1.0, 1.0], (
        "only data sets with masks count for the pixel size, because scene classes occur at all scales"
    )


def test_a_training_of_clicks_keeps_what_its_weights_know(tmp_path, monkeypatch):
    cfg = default_config()
    cfg.DATASETS.TRAIN = ("dubai_train",)
    cfg.freeze()
    fill_known(cfg)
    assert cfg.is_frozen(), "the config must still be frozen, as it is when tools/train_net.py passes it"
    cfg.defrost()
    assert any(entry.startswith("water|") for entry in cfg.MODEL.KNOWN.CLASSES)
    assert cfg.MODEL.KNOWN.GSD == [1.0, 1.0]
    stored = "MODEL: {KNOWN: {CLASSES: [ship], DATASETS: [a_train], GSD: [0.2, 0.5]}}"
    monkeypatch.setattr("skysense_o.training.run.find_weights", lambda name: tmp_path / name)
    monkeypatch.setattr("skysense_o.training.run.read_config", lambda path: stored)
    cfg.MODEL.WEIGHTS = "a.safetensors"
    cfg.MODEL.LOSS.BCE, cfg.MODEL.LOSS.PROMPT = 0.0, 1.0
    fill_known(cfg)
    known = cfg.MODEL.KNOWN
    assert (known.CLASSES, known.DATASETS, known.GSD) == (["ship"], ["a_train"], [0.2, 0.5])


def test_a_new_word_is_encoded_once_for_its_mask_and_its_warning(mini, monkeypatch):
    asked = []
    real = mini.model.tower.encode_text
    mini.unfamiliar(Vocabulary.parse("griffin"))  # this call encodes the training words
    monkeypatch.setattr(mini.model.tower, "encode_text", lambda strings: asked.extend(strings) or real(strings))
    mini(np.zeros((32, 32, 3), np.uint8), "griffin,phoenix|firebird")
    assert sorted(asked) == sorted(set(asked))
    assert {"phoenix", "firebird"} <= set(asked)
    assert "griffin" not in asked
