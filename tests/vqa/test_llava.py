"""Tests of the LLaVA model without downloads: a tiny random Llama memorises a few images."""

from __future__ import annotations

import pytest
import torch
from conftest import small_config
from tiny_llama import ANSWERS, QUESTIONS
from torch import nn

from skysense_o.checkpoint import load_weights, save_weights
from skysense_o.config import model_config
from skysense_o.vqa.llava import LlavaVQA

COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30))


def vqa_config(llama, rank: int, precision: str = "fp32"):
    cfg = small_config()
    cfg.MODEL.META_ARCHITECTURE = "LlavaVQA"
    cfg.MODEL.VQA.LANGUAGE_MODEL, cfg.MODEL.VQA.LANGUAGE_LORA_RANK = str(llama), rank
    cfg.MODEL.VQA.PRECISION, cfg.MODEL.VQA.SIDE = precision, 64
    return cfg


@pytest.fixture
def samples():
    """Return four images with two questions each, so that the question alone does not determine the answer."""
    images = [torch.tensor(color, dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 64) for color in COLORS]
    pairs = [(image, question) for image in images for question in QUESTIONS]
    return [{"image": i, "question": q, "answer": a} for (i, q), a in zip(pairs, ANSWERS)]


def test_eight_questions_are_memorised(llama, samples, tmp_path):
    torch.manual_seed(0)
    cfg = vqa_config(llama, rank=16)
    model = LlavaVQA(cfg).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"projector", "language"}
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
    for _ in range(45):
        loss = model(samples)["loss_answer"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    model.eval()
    images, questions = [s["image"] for s in samples], [s["question"] for s in samples]
    assert model.answer(images, questions) == list(ANSWERS)
    assert model.answer(images, questions, cache=False) == list(ANSWERS)
    assert [model.answer([i], [q])[0] for i, q in zip(images, questions)] == list(ANSWERS), (
        "a question must get the same answer alone as in a batch"
    )
    assert model.answer(images[2:] + images[:2], questions) != list(ANSWERS), "other images must give other answers"

    save_weights(model, tmp_path / "merged.safetensors", model_config(cfg).dump())
    again = LlavaVQA(vqa_config(llama, rank=0)).eval()
    load_weights(again, tmp_path / "merged.safetensors")
    assert again.answer(images, questions) == list(ANSWERS)


def test_the_first_stage_trains_the_projector_alone_and_its_file_is_small(llama, samples, tmp_path):
    cfg = vqa_config(llama, rank=0, precision="bf16")
    model = LlavaVQA(cfg).train()
    model(samples[:2])["loss_answer"].backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"projector"}
    assert model.language.dtype == torch.bfloat16
    save_weights(model, tmp_path / "projector.safetensors", model_config(cfg).dump())
    report = load_weights(LlavaVQA(cfg), tmp_path / "projector.safetensors")
    assert not any(name.startswith("language.") for name in report.loaded)


def test_low_rank_updates_train_in_half_precision(llama, samples):
    model = LlavaVQA(vqa_config(llama, rank=2, precision="bf16")).train()
    model(samples[:2])["loss_answer"].backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None and "parametrizations" in name]
    assert len(moved) == 2 * 2 * 7, (
        "the trained tensors must be the factors A and B of seven matrices in each of two layers"
    )


def test_a_language_model_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="LANGUAGE_MODEL .* cannot be loaded .*: give the folder"):
        LlavaVQA(vqa_config(tmp_path / "nowhere", rank=0))


def test_an_unknown_precision(llama):
    with pytest.raises(ValueError, match="PRECISION 'int4': choose one of bf16, fp32"):
        LlavaVQA(vqa_config(llama, rank=0, precision="int4"))
