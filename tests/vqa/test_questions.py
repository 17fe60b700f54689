"""Tests of questions: comparing answers, baselines, and a VQA model that learns to use the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_config

from skysense_o.checkpoint import save_weights
from skysense_o.config import model_config
from skysense_o.data.captions import read_record_image
from skysense_o.data.catalog import records_of
from skysense_o.data.question_mapper import QuestionMapper
from skysense_o.evaluation.questions import QuestionOnly, bucket, evaluate_questions, kind_of, within_one
from skysense_o.inference.classify import load_vqa_model
from skysense_o.vqa import EmbeddedVQA, normalise


def vqa_config(records):
    cfg = small_config()
    cfg.MODEL.META_ARCHITECTURE = "EmbeddedVQA"
    cfg.MODEL.VQA.ANSWERS = sorted({normalise(r["answer"]) for r in records})
    cfg.MODEL.VQA.SIDE, cfg.MODEL.VQA.WIDTH, cfg.MODEL.VQA.GRID = 64, 32, 2
    return cfg


def test_normalised():
    assert normalise(" The Twenty-two  boats. ") == "22 boats"
    assert normalise("None") == "none", "the letters 'one' in 'none' must not be taken as a number"
    assert [normalise(x) for x in ("YES", "zero", "a river", "121m2")] == ["yes", "0", "river", "121m2"]


def test_buckets_are_those_of_rsvqa():
    assert [bucket(str(n)) for n in (0, 1, 10, 11, 1000, 1001)] == [f"bucket {b}" for b in (0, 1, 1, 2, 3, 4)]
    assert bucket("seven") == "bucket 1"
    assert (bucket("0m2"), bucket("550 m2"), bucket("yes")) == ("bucket 0m2", "bucket 3m2", "yes")


def test_an_error_of_one_is_reported_separately():
    assert [within_one(said, "eight") for said in ("7", "8", "nine", "10", "many")] == [True, True, True, False, False]
    assert within_one("Several.", "several")


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How many boats in the image?", "count"),
        ("Does this image contain trees?", "presence"),
        ("What is the location of the white car in this image?", "location"),
        ("What is the theme of this image?", "theme by people"),
        ("Which colour?", "other"),
    ],
)
def test_what_people_asked_gets_a_type(question, kind):
    assert kind_of({"question": question, "kind": "human"}) == kind
    assert kind_of({"question": question, "kind": "comp"}) == "comp"


def test_the_question_alone():
    records = [{"question": q, "answer": a} for q, a in (("Is it?", "no"), ("is it", "No."), ("Is it?", "yes"))]
    lookup = QuestionOnly(records)
    assert lookup({"question": "is it?"}) == "no"
    assert lookup({"question": "Is there a ship?"}) == "no", (
        "an unseen question must get the most frequent answer of its type"
    )


def test_it_learns_to_use_the_image(questions, tmp_path):
    """After a few steps, the model beats both baselines, also after saving and loading."""
    torch.manual_seed(0)
    records = records_of("rsivqa_train")
    cfg = vqa_config(records)
    model, mapper = EmbeddedVQA(cfg).train(), QuestionMapper(cfg)
    calls, encode = [], model.tower.encode_image
    model.tower.encode_image = lambda x: calls.append(len(x)) or encode(x)
    samples = [mapper(record) for record in records]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    for _ in range(50):
        loss = model(samples)["loss_answer"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(calls) == 9, "training must encode each image only once"
    assert all(p.grad is not None for p in trained)
    model.eval()
    numbers, rows = evaluate_questions(model, records_of("rsivqa_test"), read_record_image, records)
    assert numbers["model/overall"] > max(numbers["question_only/overall"], numbers["shuffled/overall"]) + 0.2
    assert numbers["model/human"] > numbers["question_only/human"] + 0.1
    assert numbers["question_only/presence"] == numbers["question_only/count"] == pytest.approx(2 / 3)
    assert [row["number"] for row in rows] == list(range(9))
    right = [row["predictions"]["model"] == normalise(row["answer"]) for row in rows]
    assert numbers["model/overall"] == np.mean(right), "the metric must be computable from the stored rows alone"

    save_weights(model, tmp_path / "vqa.safetensors", model_config(cfg).dump())
    again = load_vqa_model(tmp_path / "vqa.safetensors", "cpu")
    large = torch.tensor((40, 60, 200), dtype=torch.uint8).view(3, 1, 1).expand(3, 200, 300)
    asked = [large, large], ["How many boats in the image?", "Does this image contain trees?"]
    assert again.answer(*asked) == model.answer(*asked) == ["2", "no"]
    strange = ["How many ...?", "how many trees does this image contain"]
    assert not {"yes", "no"} & set(again.answer([large, large], strange))


def test_in_training_a_question_is_encoded_by_itself(questions):
    """In training each question is encoded alone, because in a batch its rounding depends on the other questions."""
    model = EmbeddedVQA(vqa_config(records_of("rsivqa_train"))).train()
    batches, encode = [], model.tower.encode_text
    model.tower.encode_text = lambda strings: batches.append(len(strings)) or encode(strings)
    asked = ["Is it a river?", "How many boats are on the left of the bridge in this image?", "A lake?"]
    together = model._encode(asked)
    assert batches == [1, 1, 1]
    assert not together.requires_grad
    model.text_bank = type(model.text_bank)()
    assert all(torch.equal(model._encode([question])[0], vector) for question, vector in zip(asked, together))


def test_mistakes_are_named(questions):
    with pytest.raises(ValueError, match="holds no VQA model: train one"):
        load_vqa_model("mini", "cpu")
    with pytest.raises(ValueError, match="VQA.ANSWERS is empty"):
        EmbeddedVQA(small_config())
    one = records_of("rsivqa_test")[:3]
    with pytest.raises(ValueError, match="the shuffled baseline needs at least two images"):
        evaluate_questions(None, one, read_record_image, one)
