"""Tests of words that are kinds of other words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import small_config

from skysense_o import Vocabulary
from skysense_o.config import default_config
from skysense_o.data.concepts import kind_entries
from skysense_o.data.open_world import open_world
from skysense_o.kinds import Kinds
from skysense_o.meta_arch import SkySenseO
from skysense_o.training.known import fill_known

ENTRIES = ["vegetation|green", "tree|trees < vegetation", "forest|woods < tree", "grass < vegetation"]


def logit(p: float) -> float:
    return float(torch.tensor(p).logit())


def test_a_wider_word_loses_only_where_a_requested_kind_of_it_is_found():
    kinds = Kinds(ENTRIES)
    tree_and_forest = torch.tensor([[[logit(0.99), logit(0.9), logit(0.3)]], [[logit(0.95), logit(0.1), logit(0.2)]]])
    both = kinds.narrow(tree_and_forest.clone(), Vocabulary.parse("tree,forest")).sigmoid()
    expected = [0.99 * 0.05, 0.9 * 0.9, 0.3 * 0.8]
    torch.testing.assert_close(both[0, 0], torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert torch.equal(both[1], tree_and_forest[1].sigmoid()), "the narrower word keeps its probability"
    alone = kinds.narrow(tree_and_forest.clone(), Vocabulary.parse("tree,road"))
    assert torch.equal(alone, tree_and_forest)


def test_a_word_between_two_others_loses_to_one_and_beats_the_other():
    p = torch.tensor([0.9, 0.8, 0.6])[:, None, None]
    found = Kinds(ENTRIES).narrow(p.logit(), Vocabulary.parse("vegetation,tree,forest")).sigmoid().flatten()
    torch.testing.assert_close(found, torch.tensor([0.9 * (1 - 0.8), 0.8 * (1 - 0.6), 0.6]), atol=1e-6, rtol=1e-5)


def test_which_phrases_are_kinds_of_others():
    narrower = Kinds(ENTRIES).narrower
    assert narrower(Vocabulary.parse("vegetation,woods,road")) == {0: [1]}, "kinds of kinds count, and synonyms"
    assert narrower(Vocabulary.parse("tree|vegetation,grass")) == {1: [2]}, "grass is no kind of tree"
    assert narrower(Vocabulary.parse("tree|forest,water")) == {}, "phrases of one class do not compete"
    assert narrower(Vocabulary.parse("Trees,FOREST")) == {0: [1]}
    assert Kinds().narrower(Vocabulary.parse("tree,forest")) == {}, "unknown relations change nothing"
    assert not open_world()[0].narrower_wins, "among hundreds of classes, general words must not lose"
    asked = replace(Vocabulary.parse("tree,forest"), narrower_wins=False).with_examples({"like this": torch.ones(2)})
    assert narrower(asked) == {}


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[100.0, -100.0, 100.0]], [[-100.0, -100.0, 100.0]]])
    for dtype in (torch.float32, torch.bfloat16):
        narrowed = Kinds(ENTRIES).narrow(logits.to(dtype), Vocabulary.parse("tree,forest"))
        assert narrowed.isfinite().all()
        assert narrowed.dtype == dtype
        assert narrowed[0, 0, 0] > 10 > -50 > narrowed[0, 0, 1]
        assert narrowed[0, 0, 2] < narrowed[1, 0, 2]


def test_a_kind_of_an_unknown_concept_is_an_error():
    with pytest.raises(ValueError, match=r"'tree' is a kind of \['vegetation'\], which have no entry: add them"):
        Kinds(["tree < vegetation"])


def test_all_doors_of_the_model_apply_it():
    cfg = small_config()
    cfg.MODEL.KNOWN.KINDS = ENTRIES
    torch.manual_seed(0)
    model, words = SkySenseO(cfg).eval(), Vocabulary.parse("vegetation,tree")
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        alone = [model.predict_windows(image[None], Vocabulary.parse(word))[0, 0] for word in ("vegetation", "tree")]
        both = model.predict_windows(image[None], words)[0]
    torch.testing.assert_close(both[1], alone[1])
    torch.testing.assert_close(both[0], alone[0] * (1 - alone[1]), atol=1e-5, rtol=1e-4)
    sample = {"image": image, "vocabulary": words}
    predicted = model.predict([sample], "probabilities")[0]["sem_seg"]
    alone = [
        model.predict([sample | {"vocabulary": Vocabulary.parse(word)}], "probabilities")[0]["sem_seg"][0]
        for word in words.classes
    ]
    assert (predicted[0] < alone[0]).all()
    torch.testing.assert_close(predicted[1], alone[1])


def test_a_training_with_concepts_stores_the_kinds_in_its_weights():
    entries = kind_entries()
    assert any(entry.startswith("forest|") and entry.endswith(" < tree") for entry in entries)
    assert any(entry.startswith("vegetation") and "<" not in entry for entry in entries)
    Kinds(entries)
    for mapper, expected in (("mixed", entries), ("labels", [])):
        cfg = default_config()
        cfg.DATASETS.TRAIN, cfg.INPUT.MAPPER = ("dubai_train",), mapper
        fill_known(cfg)
        assert expected == cfg.MODEL.KNOWN.KINDS
