"""Tests of the page and the prompt loop with SAM 3 on tiny random weights, without browser or server."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, draw_scene
from tiny_sam3 import make_whole
from transformers.utils import logging

from skysense_o import Predictor, Vocabulary
from skysense_o.interactive.dialogue import Dialogue
from skysense_o.interactive.exports import export
from skysense_o.interactive.opening import OpenedImage
from skysense_o.interactive.page import Page
from skysense_o.interactive.session import Session

logging.disable_progress_bar()
MANY = Vocabulary.of([f"thing {i}" for i in range(100)])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.from_pretrained(make_whole(tmp_path_factory.mktemp("sam3")), "cpu")


@pytest.fixture
def session(predictor, tmp_path):
    made = Session(
        predictor, OpenedImage(draw_scene(np.random.default_rng(0), 60, 90)[0], "town.png"), tmp_path / "session"
    )
    yield made
    made.close()


@pytest.fixture
def decoded(predictor, monkeypatch):
    """Return a list that gets the number of image-phrase pairs in each call of the decoder."""
    calls, answer = [], predictor.model.tower.answer
    monkeypatch.setattr(
        predictor.model.tower, "answer", lambda e, tokens, valid: calls.append(len(tokens)) or answer(e, tokens, valid)
    )
    return calls


def test_words_a_click_a_box_an_example_and_files(session, decoded):
    region = session.click(45, 30)
    assert region.mask.shape == (60, 90)
    assert 0 <= region.iou_pred <= 1
    assert session.naming(MANY) is None, (
        "a region must stay unnamed: a hundred words would need a hundred masks at each click"
    )
    assert session.name(session.naming(MANY)) == []
    assert decoded == []
    found = session.segment(["building|house", "water"])
    assert found.classes == ("building", "water")
    assert sum(decoded) == 3
    session.draw_box(20, 10, 60, 40)
    assert {name for name, _ in session.name(session.naming(MANY))} == {"building", "water"}
    assert sum(decoded) == 6
    session.add_example()
    assert session.segment(["water"]).classes == ("water", "like region 1")
    assert session.nbytes > 60 * 90 * 3
    assert {path.suffix for path in export(session)} >= {".png", ".json"}


def test_everything_without_words_and_with(session):
    options = {"side": 4, "iou_pred": 0.0, "stability_score": 0.0, "overlap": 1.0}
    assert all(not proposal.classes for proposal in session.find_all_regions(session.naming(MANY), **options))
    session.segment(["water", "road"])
    for proposal in session.find_all_regions(session.naming(MANY), **options):
        assert {name for name, _ in proposal.classes} == {"water", "road"}


def test_the_page(predictor, tmp_path, monkeypatch):
    page = Page(predictor, tmp_path)
    # Naming must not encode the hundreds of phrases: SAM 3 needs 19 GFLOP for each phrase.
    page.encode_naming_vocabulary()
    assert predictor.model.text_bank._tokens.keys() <= {"building", "house", "water", "road", "visual"}
    assert page.about()["prompts"]
    _, visitor = page.visitors.of(None)
    image = visitor.images[page.open(visitor, ROOT / "demo/fields_30m.jpg")["id"]]
    state = page.locked(image, page.click, 100.4, 80.9, True)
    assert state["region"]["points"] == [(100.5, 80.5, 1)]
    assert 0 <= state["region"]["iou_pred"] <= 1
    assert state["region"]["names"] == []
    state = page.locked(image, page.segment, "field, road", "", 0)
    assert [row["name"] for row in state["classes"]] == ["field", "road"]
    state = page.locked(image, page.click, 10, 13, False)
    assert state["region"]["names"] or not state["region"]["pixels"]
    every = partial(image.session.find_all_regions, iou_pred=0, stability_score=0, side=4)
    monkeypatch.setattr(image.session, "find_all_regions", every)
    assert page.locked(image, page.everything)["summary"]
    page.visitors.close(visitor, image.key)


def test_the_prompt_loop(session, tmp_path):
    said = io.StringIO()
    lines = "point 40 30\nbox 20 10 60 40\nname\nname road,tree\nbuilding, water\neverything 3\nquit"
    Dialogue(session, tmp_path / "out", lambda: MANY, stdin=io.StringIO(lines), stdout=said).cmdloop()
    assert said.getvalue().count(" pixels, predicted IoU ") == 2
    assert "SAM 3 compares class by class: give words" in said.getvalue()
    assert "tree" in said.getvalue()
    assert "error" not in said.getvalue()
