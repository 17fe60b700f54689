"""What a large tower needs to be trained in little memory: recomputed layers, low-rank updates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

ORIGINAL = re.compile(r"\.parametrizations\.(\w+)\.original$")


def recompute_layers(layers: Iterable[nn.Module]) -> None:
    """In training, keep no layer's inner activations: they are computed again in the backward pass. Same results."""
    for layer in layers:
        layer.forward = partial(_recomputed, layer, layer.forward)


def _recomputed(layer: nn.Module, forward, *args, **kwargs) -> Tensor:
    if layer.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)


class LowRank(nn.Module):
    """W -> W + B A, with A (rank,in) random and B (out,rank) zero at first (LoRA, Hu et al. 2022; its scale is 1)."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).to(weight.dtype)


def add_lora(attentions: Iterable[nn.Module], rank: int) -> int:
    """Freeze the matrices of attention layers and give each a low-rank update to train; how many there are.

    Args:
        attentions: modules whose own Linear layers, and `in_proj_weight`, are taken.
    """
    count = 0
    for attention in attentions:
        linears = [(m, "weight") for m in attention.children() if isinstance(m, nn.Linear)]
        packed = [(attention, "in_proj_weight")] if getattr(attention, "in_proj_weight", None) is not None else []
        for module, name in [*linears, *packed]:
            matrix = getattr(module, name)
            matrix.requires_grad_(False)
            parametrize.register_parametrization(module, name, LowRank(*matrix.shape, rank).to(matrix.device))
            count += 1
    return count


def merge_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without low-rank updates: they are added to their matrices, which get their plain names back."""
    plain = {}
    for name, tensor in state.items():
        if ORIGINAL.search(name):
            stem = name.removesuffix("original")
            plain[ORIGINAL.sub(r".\1", name)] = tensor + state[stem + "0.b"] @ state[stem + "0.a"]
        elif ".parametrizations." not in name:
            plain[name] = tensor
    return plain


def with_original_names(state: dict[str, Tensor], ours: Iterable[str]) -> dict[str, Tensor]:
    """A plain state by the names of a model with low-rank updates."""
    table = {ORIGINAL.sub(r".\1", name): name for name in ours if ORIGINAL.search(name)}
    return {table.get(name, name): tensor for name, tensor in state.items()}
