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
from skysense_o.inference.predictor import Predictor
from skysense_o.meta_arch import SkySenseO
from skysense_o.text_bank import TextBank
from skysense_o.training.known import fill_known, take_known
from skysense_o.training_words import FAR, NEAREST, TEMPERATURE, TrainingWords, describe_unfamiliar
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
    assert far == '"teapot" is far from every English word of the training: its mask may mean nothing'


def test_a_slip_gets_the_word_that_was_meant_and_not_the_nearest_meaning(tower):
    words = TrainingWords(tower, ["river|stream", "roof"])
    for slip, meant in {"rivr": "river", "Steams": "stream", "raiver": "river", "rofo": "roof"}.items():
        found = words.unfamiliar(Vocabulary.parse(slip))
        assert found == {slip: (meant, None)}
        assert describe_unfamiliar(found) == [f'"{slip}" is not a word of the training: did you mean "{meant}"?']
    assert words.unfamiliar(Vocabulary.parse("creek"))["creek"][1] is not None


def test_nobody_is_told_that_a_word_is_like_no_thing(tower, monkeypatch):
    monkeypatch.setitem(AXES, "other", AXES["teapot"])
    words = TrainingWords(tower, ["river", "other|roof"])
    assert words.unfamiliar(Vocabulary.parse("teapot"))["teapot"][0] == "roof"
    assert words.unfamiliar(Vocabulary.parse("river,other")) == {}


def test_background_words_examples_and_unknown_trainings_are_not_judged(tower):
    vocabulary = Vocabulary.parse("river", "teapot").with_examples({"like this": torch.ones(3)})
    assert TrainingWords(tower, ["river"]).unfamiliar(vocabulary) == {}
    assert TrainingWords(tower, []).unfamiliar(Vocabulary.parse("teapot")) == {}


def blended(tower, words: str, classes=("river|stream", "roof"), share=0.8) -> tuple[torch.Tensor, torch.Tensor]:
    """The text vectors (T,D) of a vocabulary before and after `TrainingWords.blend`."""
    vocabulary = Vocabulary.parse(words)
    text, _ = TextBank()(tower, [vocabulary], ["{}"])
    return text[0, :, 0], TrainingWords(tower, classes, share=share).blend(text, [vocabulary], ["{}"])[0, :, 0]


def test_a_new_word_moves_towards_the_training_words_that_are_like_it(tower):
    raw, moved = blended(tower, "river,creek")
    torch.testing.assert_close(moved[0], raw[0], msg="a training word must keep its vector")
    vector = {word: F.normalize(torch.tensor(AXES[word], dtype=torch.float32), dim=0) for word in AXES}
    cosines = torch.stack([vector["creek"] @ vector[word] for word in ("river", "stream", "roof")])
    near = torch.stack([vector["river"], vector["stream"], vector["roof"]])
    mean = F.normalize((cosines / TEMPERATURE).softmax(0) @ near, dim=0)
    torch.testing.assert_close(moved[1], F.normalize(0.2 * vector["creek"] + 0.8 * mean, dim=0))
    assert vector["stream"] @ moved[1] > vector["stream"] @ raw[1]


def test_a_word_that_is_far_from_all_training_words_keeps_its_vector(tower):
    raw, moved = blended(tower, "teapot", ["river", "roof"])
    torch.testing.assert_close(moved, raw)


def test_only_the_most_similar_training_words_count(tower, monkeypatch):
    """With more than NEAREST training words, words that are unlike the new one change nothing."""
    for i in range(NEAREST):
        monkeypatch.setitem(AXES, f"river {i}", [1, 0.01 * i, 0])
    near = [f"river {i}" for i in range(NEAREST)]
    _, few = blended(tower, "creek", near)
    _, many = blended(tower, "creek", [*near, "teapot"])
    torch.testing.assert_close(few, many, rtol=0, atol=0)


def test_no_word_moves_without_a_share_without_training_words_or_from_an_example(tower):
    vocabulary = Vocabulary.parse("creek").with_examples({"like this": torch.tensor([0.0, 0.0, 1.0])})
    text, _ = TextBank()(tower, [vocabulary], ["{}"])
    for classes, share in ((["river"], 0.0), ([], 0.8)):
        assert TrainingWords(tower, classes, share=share).blend(text, [vocabulary], ["{}"]) is text
    before = text.clone()
    moved = TrainingWords(tower, ["river"], share=0.8).blend(text, [vocabulary], ["{}"])
    assert torch.equal(moved[0, 1], text[0, 1])
    assert not torch.equal(moved[0, 0], text[0, 0])
    assert torch.equal(text, before), "the cached vectors must not change"


def test_a_share_out_of_range_is_an_error(tower):
    with pytest.raises(ValueError, match="MODEL.KNOWN.BLEND 1.5 is out of range: 0 to 1"):
        TrainingWords(tower, ["river"], share=1.5)


def test_new_weights_of_the_text_tower_are_blended_anew(tower):
    """Evaluation during a training must not use vectors of the previous weights."""
    weight = torch.ones(1)
    tower.text_parameters = lambda: [weight]
    bank, vocabulary = TextBank(), Vocabulary.parse("creek")
    words = TrainingWords(tower, ["river"], bank, share=0.5)
    first = words.blend(bank(tower, [vocabulary], ["{}"])[0], [vocabulary], ["{}"])
    old, tower.encode_text = tower.encode_text, lambda strings: old(strings).flip(-1)
    weight += 1
    bank.weights_changed()
    second = words.blend(bank(tower, [vocabulary], ["{}"])[0], [vocabulary], ["{}"])
    torch.testing.assert_close(second, first.flip(-1))


def test_the_predictor_warns_once(small_model, monkeypatch, caplog):
    words = TrainingWords(small_model.tower, ["road|street", "water"], small_model.text_bank)
    monkeypatch.setattr(small_model, "training_words", words)
    predictor = Predictor(small_model)
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
    stored = "MODEL: {KNOWN: {CLASSES: [ship], DATASETS: [a_train], GSD: [0.2, 0.5], BLEND: 0.8}}"
    monkeypatch.setattr("skysense_o.training.known.find_weights", lambda name: tmp_path / name)
    monkeypatch.setattr("skysense_o.training.known.read_config", lambda path: stored)
    cfg.MODEL.WEIGHTS = "a.safetensors"
    cfg.MODEL.LOSS.BCE, cfg.MODEL.LOSS.PROMPT = 0.0, 1.0
    fill_known(cfg)
    known = cfg.MODEL.KNOWN
    assert (known.CLASSES, known.DATASETS, known.GSD, known.BLEND) == (["ship"], ["a_train"], [0.2, 0.5], 0.8)


def test_an_evaluation_takes_what_the_weights_know(tmp_path, monkeypatch):
    """So run_eval.sh and Predictor give the same masks."""
    monkeypatch.setattr("skysense_o.training.known.find_weights", lambda name: tmp_path / name)
    stored = "MODEL: {KNOWN: {CLASSES: [ship], KINDS: [boat < ship, ship], BLEND: 0.8, PRESENCE: [1.0, 0.0]}}"
    monkeypatch.setattr("skysense_o.training.known.read_config", lambda path: stored)
    cfg = default_config()
    take_known(cfg)
    assert cfg.MODEL.KNOWN.BLEND == -1.0, "without weights nothing is known"
    cfg.MODEL.WEIGHTS = "a.safetensors"
    take_known(cfg)
    known = cfg.MODEL.KNOWN
    assert (known.CLASSES, known.BLEND, known.PRESENCE) == (["ship"], 0.8, [1.0, 0.0])
    cfg.MODEL.KNOWN.CLASSES, cfg.MODEL.KNOWN.BLEND = ["road"], 0.0
    take_known(cfg)
    assert (cfg.MODEL.KNOWN.CLASSES, cfg.MODEL.KNOWN.BLEND) == (["road"], 0.0), "a config's own facts stay"
    fill_known(cfg)
    assert cfg.MODEL.KNOWN.BLEND == 0.0, "a training can switch it off, too"


def test_a_new_word_is_encoded_once_for_its_mask_and_its_warning(mini, monkeypatch):
    asked = []
    real = mini.model.tower.encode_text
    mini.unfamiliar(Vocabulary.parse("griffin"))  # this call encodes the training words
    monkeypatch.setattr(mini.model.tower, "encode_text", lambda strings: asked.extend(strings) or real(strings))
    mini(np.zeros((32, 32, 3), np.uint8), "griffin,phoenix|firebird")
    assert sorted(asked) == sorted(set(asked))
    assert {"phoenix", "firebird"} <= set(asked)
    assert "griffin" not in asked


def test_a_phrase_with_a_training_word_in_it_keeps_its_vector(tower, monkeypatch):
    """A "bus stop" is no bus, and "not water" is no water."""
    monkeypatch.setitem(AXES, "roof garden", [0.4, 1, 0])
    monkeypatch.setitem(AXES, "not-river", [1, 0.2, 0])
    raw, moved = blended(tower, "roof garden,not-river,creek")
    assert torch.equal(moved[:2], raw[:2])
    assert not torch.equal(moved[2], raw[2])


def test_batches_and_templates_are_blended_as_single_words_are(tower, monkeypatch):
    for word in ("river", "stream", "roof", "creek", "teapot"):
        monkeypatch.setitem(AXES, f"a {word}", [*AXES[word][:2], AXES[word][2] + 0.1])
    pair, templates = [Vocabulary.parse("creek"), Vocabulary.parse("roof,creek,river")], ["{}", "a {}"]
    words = TrainingWords(tower, ["river|stream", "roof"], share=0.8)
    text, valid = TextBank()(tower, pair, templates)
    moved = words.blend(text, pair, templates)
    assert valid.tolist() == [[True, False, False], [True, True, True]]
    assert torch.equal(moved[0, 1:], text[0, 1:]), "padding stays"
    torch.testing.assert_close(moved[0, 0], moved[1, 1])
    torch.testing.assert_close(moved[0, 0, 0], blended(tower, "creek")[1][0])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            TrainingWords(tower, ["river|stream", "roof"], share=0.8).blend(text, pair, templates), moved
        )


def test_the_config_gives_the_model_its_training_words(cfg):
    cfg.MODEL.KNOWN.CLASSES = ["road|street"]
    assert SkySenseO(cfg).training_words.share == 0.0, "not set: words are read by their own vectors"
    cfg.MODEL.KNOWN.BLEND = 0.8
    words = SkySenseO(cfg).training_words
    assert (words.share, words.classes) == (0.8, [["road", "street"]])


def test_the_model_reads_new_words_with_the_help_of_training_words(small_model, monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)

    def probabilities():
        return Predictor(small_model).set_image(image).predict_text(Vocabulary.parse("road,boulevard"), "probabilities")

    plain = probabilities()["sem_seg"]
    words = TrainingWords(small_model.tower, ["road|street", "water"], small_model.text_bank, share=0.8)
    monkeypatch.setattr(small_model, "training_words", words)
    blended = probabilities()["sem_seg"]
    torch.testing.assert_close(blended[0], plain[0], msg="a training word must give the same mask")
    assert (blended[1] - plain[1]).abs().max() > 1e-6
    window = torch.from_numpy(image).permute(2, 0, 1)[None]
    grid = small_model.predict_windows(window, Vocabulary.parse("road,boulevard"))[0]
    small_model.training_words = TrainingWords(small_model.tower, [], small_model.text_bank)
    raw = small_model.predict_windows(window, Vocabulary.parse("road,boulevard"))[0]
    torch.testing.assert_close(grid[0], raw[0])
    assert (grid[1] - raw[1]).abs().max() > 1e-6, "windows of a scene must be read like whole images"
