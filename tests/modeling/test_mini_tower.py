"""MiniTower, which may also read the image at half its size."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import small_config
from torch import nn

from skysense_o.modeling.tower import build_tower


@pytest.fixture(scope="module")
def towers():
    """The same tower without and with context."""
    torch.manual_seed(0)
    cfg = small_config()
    plain = build_tower(cfg).double().eval()
    cfg.MODEL.TOWER.CONTEXT = True
    both = build_tower(cfg).double().eval()
    missing, unexpected = both.load_state_dict(plain.state_dict(), strict=False)
    assert missing == [f"context.{k}.weight" for k in range(3)]
    assert not unexpected
    return plain, both


def maps(tower, x):
    found = tower.encode_image(x)
    return found.dense, *found.pyramid


@torch.no_grad()
def test_new_context_changes_nothing(towers):
    x = torch.randn(1, 3, 128, 192, dtype=torch.float64)
    for without, with_context in zip(*(maps(tower, x) for tower in towers)):
        torch.testing.assert_close(with_context, without, atol=0, rtol=0)


@torch.no_grad()
def test_trained_context_reads_the_image_at_half_its_size(towers):
    both = copy.deepcopy(towers[1])
    for conv in both.context:
        nn.init.normal_(conv.weight, 0, 0.1)
    x = torch.randn(1, 3, 128, 192, dtype=torch.float64)
    finest = x + torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(64, 96)
    calls = []
    both.image.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    dense, *pyramid = maps(both, x)
    maps(both, finest)
    assert [call.shape[-1] for call in calls] == [192, 96, 192, 96]
    torch.testing.assert_close(calls[1], calls[3], msg="a pattern of single pixels is gone at half the size")
    assert not torch.allclose(dense, maps(towers[0], x)[0])
    assert [tuple(m.shape[2:]) for m in (dense, *pyramid)] == [(8, 12), (16, 24), (32, 48)]


@torch.no_grad()
def test_prepared_for_inference_both_sizes_give_the_same(towers):
    both = copy.deepcopy(towers[1])
    for conv in both.context:
        nn.init.normal_(conv.weight, 0, 0.1)
    x = torch.randn(1, 3, 64, 128, dtype=torch.float64)
    before = maps(both, x)
    both.prepare_inference()
    for a, b in zip(before, maps(both, x)):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)


def test_sides_are_padded_so_that_half_of_them_fits_the_encoder(towers):
    assert [tower.divisor for tower in towers] == [32, 64]
