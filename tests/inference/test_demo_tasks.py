"""Tests of demo.py on whole images: --task classify and --task ask."""

from __future__ import annotations

import json

import torch
from conftest import small_config
from vqa.test_questions import vqa_config

from skysense_o.checkpoint import save_weights
from skysense_o.config import model_config
from skysense_o.data.catalog import records_of
from skysense_o.meta_arch import SkySenseO
from skysense_o.vqa import EmbeddedVQA

DEMO = "demo/demo.py"


def test_classify_ranks_the_classes(call, dubai, tmp_path):
    words = ("--task", "classify", "--classes", "river,road,forest", "--output", tmp_path / "out")
    code, out, err = call(DEMO, "--input", dubai / "images/tile5_001.jpg", *words)
    assert code == 0, err
    rows = json.loads((tmp_path / "out/tile5_001_classify.json").read_text())["names"]
    assert {row["name"] for row in rows} == {"river", "road", "forest"}
    assert [row["cosine"] for row in rows] == sorted((row["cosine"] for row in rows), reverse=True)
    assert rows[0]["name"] in out


def test_ask_answers_each_question(call, questions, tmp_path):
    cfg = vqa_config(records_of("rsivqa_train"))
    torch.manual_seed(0)
    save_weights(EmbeddedVQA(cfg), tmp_path / "vqa.safetensors", model_config(cfg).dump())
    words = ("--input", questions / "images/river/test0.png", "--task", "ask", "--output", tmp_path / "out")
    asked = ("How many boats?", "Is there a river?")
    both = [word for question in asked for word in ("--question", question)]
    code, out, err = call(DEMO, *words, *both, "--weights", tmp_path / "vqa.safetensors")
    assert code == 0, err
    answers = json.loads((tmp_path / "out/test0_ask.json").read_text())["answers"]
    assert tuple(one["question"] for one in answers) == asked
    for one in answers:
        assert one["answer"] in cfg.MODEL.VQA.ANSWERS
        assert f"test0.png: {one['question']} {one['answer']}" in out
    save_weights(SkySenseO(small_config()), tmp_path / "masks.safetensors", model_config(small_config()).dump())
    code, _, err = call(DEMO, *words, "--question", "How many boats?", "--weights", tmp_path / "masks.safetensors")
    assert code == 2
    assert "holds no VQA model: train one" in err
    assert call(DEMO, *words, "--question", "How many boats?")[0] == 0, (
        "without --weights the command must use mini_vqa"
    )
    assert json.loads((tmp_path / "out/test0_ask.json").read_text())["weights"] == "mini_vqa"
    code, _, err = call(DEMO, *words)
    assert code == 2
    assert 'no question: give --question "..."' in err


def test_no_classes_are_an_error(call, dubai, tmp_path):
    code, _, err = call(DEMO, "--input", dubai / "images/tile5_001.jpg", "--output", tmp_path / "out")
    assert code == 2
    assert "no classes: give --classes" in err


def test_one_bad_image_does_not_end_a_task(call, dubai, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    images = ("--input", tmp_path / "bad.png", dubai / "images/tile5_001.jpg")
    code, _, err = call(DEMO, *images, "--task", "classify", "--classes", "river,road", "--output", tmp_path / "out")
    assert code == 1
    assert "bad.png" in err
    assert err.endswith("1 of 2 images failed\n")
    assert (tmp_path / "out/tile5_001_classify.json").is_file()


def test_tasks_check_their_options_and_use_them(call, dubai, questions, tmp_path):
    image = ("--input", dubai / "images/tile5_001.jpg", "--output", tmp_path / "out")
    classes = ("--task", "classify", "--classes", "river,road")
    code, _, err = call(DEMO, *image, *classes, "--threshold", "7")
    assert code == 2
    assert "--threshold 7.0 is out of range" in err
    cfg = vqa_config(records_of("rsivqa_train"))
    torch.manual_seed(0)
    model = EmbeddedVQA(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "vqa.pth")
    (tmp_path / "vqa.yaml").write_text(model_config(cfg).dump())
    asked = ("--task", "ask", "--question", "How many boats?", "--weights", tmp_path / "vqa.pth")
    code, _, err = call(DEMO, *image, *asked)
    assert code == 2
    assert "does not hold its config" in err
    for precision in ("fp32", "bf16"):
        code, _, err = call(DEMO, *image, *asked, "--config-file", tmp_path / "vqa.yaml", "--precision", precision)
        assert code == 0, err
    old = {"model": {name: t.numpy() for name, t in model.state_dict().items()}}
    torch.save(old, tmp_path / "vqa.pth")
    assert call(DEMO, *image, *asked, "--config-file", tmp_path / "vqa.yaml")[0] == 2
    trusted = ("--config-file", tmp_path / "vqa.yaml", "--trust-checkpoint")
    code, _, err = call(DEMO, *image, *asked, *trusted)
    assert code == 0, err
