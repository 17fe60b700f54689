"""Tests that our copy of the published losses gives the published code's values and gradients on small random weights.

`tests/reference/published_losses.npz` holds two runs of the published code: classes sampled with a relation graph, and
an image with one class. (The published labels of overlapping masks are left out, because here a pixel has one class.)
"""

from __future__ import annotations

import json

import pytest
import torch
from modeling.test_published import build, published_state, stored

from skysense_o import losses
from skysense_o.checkpoint import load_state
from skysense_o.modeling import RegionProjection
from skysense_o.objective import Objective
from skysense_o.published import published_name
from skysense_o.vocabulary import Vocabulary

WEIGHTS = {"bce": 1.0, "region_published": 0.4, "vision_centric_published": 0.4}
NAMES = {
    "loss_bce": "loss_sem_seg",
    "loss_region_published": "region_contrast_loss",
    "loss_vision_centric_published": "regularization_loss",
}


@pytest.fixture(scope="module")
def arrays():
    return stored("losses")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build()
    model.region_projection = RegionProjection(32, 16)
    report = load_state(model, published_state(), "the published state")
    assert {"pixel_shuffle_conv0.weight", "pixel_shuffle_conv1.bias"}.isdisjoint(report.passed_over)
    model.objective = Objective(WEIGHTS, ignored_as_negative=True, class_chunk=5)
    return model.train()


def sample(arrays, case) -> dict:
    """Return the inputs that the published code had; S_v has the graph's scores, and 0 for pairs without an edge."""
    names = arrays[f"{case}_texts"].tolist()
    sem_seg = arrays["sem_seg_one" if case == "one" else "sem_seg"].long()
    graph = json.loads(str(arrays["graph_json"]))
    visual_similarity = torch.tensor([[graph.get(a, {}).get(b, 0) / 10 for b in names] for a in names])
    return {
        "image": arrays["image"],
        "sem_seg": sem_seg,
        "vocabulary": Vocabulary.of(names),
        "visual_similarity": visual_similarity,
    }


@pytest.mark.parametrize("case", ["dyn", "one"])
def test_values_and_gradients_of_the_published_losses(model, arrays, case, monkeypatch):
    alike = arrays.get(f"{case}_text_correlation", torch.ones(12, 12))  # the case with one class needs no similarity
    monkeypatch.setattr(model.objective, "similarity", lambda names: alike)
    model.zero_grad()
    model.text_bank.weights_changed()
    got = model([sample(arrays, case)])
    for ours, theirs in NAMES.items():
        assert got[ours].item() == pytest.approx(float(arrays[f"{case}_{theirs}"]), abs=2e-5), ours
    sum(got.values()).backward()
    ours = {published_name(n): p.grad for n, p in model.named_parameters() if p.grad is not None}
    names = arrays[f"{case}_grad_names"].tolist()
    assert set(names) <= set(ours), sorted(set(names) - set(ours))[:5]
    norms, sums = arrays[f"{case}_grad_norms"], arrays[f"{case}_grad_sums"]
    for name, norm, total in zip(names, norms.tolist(), sums.tolist()):
        # Expected rounding error of this sum in single precision.
        noise = 1e-3 * norm * ours[name].numel() ** 0.5 + 2e-5
        assert ours[name].norm().item() == pytest.approx(norm, rel=5e-3, abs=2e-5), name
        assert ours[name].sum().item() == pytest.approx(total, rel=5e-3, abs=noise), name
    for key in [k for k in arrays if k.startswith(f"{case}_grad/")]:
        name = key.removeprefix(f"{case}_grad/")
        worst = (ours[name] - arrays[key].reshape(ours[name].shape)).abs().max().item()
        assert worst < 5e-3 * ours[name].abs().max().item() + 2e-6, name


def test_pooling_first_equals_pooling_the_map():
    """Projecting pooled features equals pooling the projected map as published, both in values and in gradients."""
    torch.manual_seed(0)
    projection = RegionProjection(6, 4).double()
    dense = torch.randn(2, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    sem_seg = torch.randint(0, 4, (2, 12, 20))
    sem_seg[0, :5] = 255
    sem_seg[1] = sem_seg[1].clamp(max=1)
    full = projection.mix(torch.nn.functional.pixel_shuffle(projection.expand(dense), 4))
    naive = torch.einsum("bthw,bdhw->btd", losses.one_hot(sem_seg, 5).double(), full)
    got = projection(dense, sem_seg, 5)
    torch.testing.assert_close(got, naive, atol=1e-10, rtol=0)
    weight = torch.randn_like(naive)
    wanted = torch.autograd.grad((naive * weight).sum(), [dense, *projection.parameters()])
    for a, b in zip(torch.autograd.grad((got * weight).sum(), [dense, *projection.parameters()]), wanted):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_labels_that_are_not_a_multiple_of_the_grid_are_an_error():
    with pytest.raises(ValueError, match="needs exactly 4 pixels per cell; set MODEL.LOSS.REGION_UPSCALE"):
        RegionProjection(6, 4)(torch.zeros(1, 6, 3, 5), torch.zeros(1, 12, 21, dtype=torch.int64), 2)
