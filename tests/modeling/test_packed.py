"""Tests that linear layers packed for a CPU give the results of plain layers."""

from __future__ import annotations

import copy

import pytest
import torch
from modeling.test_published import build, published_state
from torch import nn

from skysense_o.checkpoint import load_state
from skysense_o.modeling import packed
from skysense_o.modeling.packed import PackedLinear, pack_linears


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_has_the_outputs_of_the_plain_one_for_any_number_of_rows(dtype):
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 24)).to(dtype)
    plain = copy.deepcopy(mlp)
    assert pack_linears([mlp]) == 2
    assert not list(mlp.parameters())  # no plain weights remain, so each weight is in memory only once
    for shape in ((1, 40), (7, 40), (2, 33, 40)):
        x = torch.randn(shape, dtype=dtype)
        torch.testing.assert_close(mlp(x), plain(x), atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)


@torch.no_grad()
def test_the_published_model_gives_the_same_masks_with_packed_layers():
    plain, fast = build(), build()
    for model in (plain, fast):
        load_state(model, published_state(), "the published state")
    fast.tower.pack()
    assert sum(isinstance(m, PackedLinear) for m in fast.modules()) == 10 * 4 + 2 * 3
    x = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast.tower.encode_image(x).dense, plain.tower.encode_image(x).dense, atol=1e-4, rtol=0)
    words = ["a road", "water"]
    torch.testing.assert_close(fast.tower.encode_text(words), plain.tower.encode_text(words), atol=1e-5, rtol=0)


def test_without_the_operators_layers_stay_as_they_are(monkeypatch, caplog):
    def absent(*_, **__):
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed, "PackedLinear", absent)
    mlp = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    assert pack_linears([mlp]) == 0
    assert [type(child) for child in mlp] == [nn.Linear, nn.GELU]
    assert "not packed" in caplog.text
