"""Tests of device placement without a GPU, on fake tensors, which raise an error if they are mixed with CPU tensors.

Autograd calls the CUDA driver, which is absent here. Backward passes therefore run on fake "meta" tensors, which also
fail when mixed with CPU tensors; forward passes run on fake "cuda" tensors.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from skysense_o.meta_arch import SkySenseO
from skysense_o.modeling import Queries
from skysense_o.vocabulary import Vocabulary


@pytest.fixture
def fake():
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.fixture
def model_on(cfg, fake):
    """Return a function that builds the small model on a device that need not exist on this machine."""

    def build(device: str) -> SkySenseO:
        cfg.MODEL.LOSS.CROSS_ENTROPY = cfg.MODEL.LOSS.DICE = cfg.MODEL.LOSS.REGION = 1.0
        cfg.MODEL.TEXT_NOISE = 0.5
        model = SkySenseO(cfg)
        with fake:
            model.to_empty(device=device)
        model.text_bank.weights_of = lambda tower: "fake weights have no hash"
        # MiniLM disables autocast, which fails for "meta". Replace it: MiniLM is frozen, so it has no backward pass.
        if device == "meta":
            model.tower.encode_text = lambda strings: torch.empty(len(strings), model.tower.dim, device=device)
        return model

    return build


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_tower_and_head(model_on, fake, device):
    model = model_on(device)
    with fake:
        features = model.tower.encode_image(torch.empty(2, 3, 96, 64, device=device))
        assert features.dense.shape == (2, model.tower.dim, 6, 4)
        text = torch.empty(2, 3, 1, model.tower.dim, device=device)
        valid = torch.ones(2, 3, dtype=torch.bool, device=device)
        logits, presence, _ = model.sem_seg_head(features, Queries(text, valid))
        assert logits.device.type == presence.device.type == device
        if device == "meta":
            (logits.sum() + presence.sum()).backward()
            assert model.tower.project.weight.grad.device.type == device


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_losses_of_samples_from_the_cpu(model_on, fake, device):
    """Losses move images and labels of different sizes from the CPU, where the loader leaves them, to the device."""
    model = model_on(device)
    with fake:
        samples = [
            {
                "image": torch.empty(3, 64, width, dtype=torch.uint8),
                "sem_seg": torch.empty(64, width, dtype=torch.int64),
                "vocabulary": Vocabulary.parse(words),
            }
            for width, words in ((64, "road,water"), (50, "road,tree,lake"))
        ]
        terms = model.train()(samples)
        assert set(terms) == {"loss_bce", "loss_cross_entropy", "loss_dice", "loss_region", "loss_presence"}
        assert all(term.device.type == device for term in terms.values())
        if device == "meta":
            sum(terms.values()).backward()


def test_a_stray_cpu_tensor_is_caught(model_on, fake):
    """A CPU tensor on a CUDA model raises an error, so the other tests of this file can fail."""
    model = model_on("cuda")
    with fake, pytest.raises(RuntimeError, match="device"):
        model.tower.encode_image(torch.empty(1, 3, 64, 64, device="cpu"))


def test_prediction(model_on, fake):
    model = model_on("cuda")
    sample = {"image": torch.empty(3, 70, 90, dtype=torch.uint8), "vocabulary": Vocabulary.parse("road,water|lake")}
    with fake:
        (out,) = model.eval()([sample])
    assert out["labels"].shape == (70, 90)
    assert out["labels"].device.type == out["presence"].device.type == "cuda"
