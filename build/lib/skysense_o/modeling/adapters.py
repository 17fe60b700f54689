"""Train a large tower in little memory: activation checkpointing and low-rank updates (LoRA)."""

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
    """Recompute the activations of each layer in the backward pass instead of storing them; results do not change.

    Args:
        layers: modules whose `forward` is replaced, for training only.
    """
    for layer in layers:
        layer.forward = partial(_recomputed, layer, layer.forward)


def _recomputed(layer: nn.Module, forward, *args, **kwargs) -> Tensor:
    if layer.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)


class LowRank(nn.Module):
    """W -> W + B A with A (rank,in) random and B (out,rank) zero at the start (LoRA, Hu et al. 2022, with scale 1)."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).to(weight.dtype)


def add_lora(attentions: Iterable[nn.Module], rank: int) -> int:
    """Freeze the weight matrices of attention layers and add a trainable low-rank update to each.

    Args:
        attentions: modules; their direct Linear children and `in_proj_weight` are updated.
        rank: rank of the updates.

    Returns:
        The number of matrices.
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
    """Add the low-rank updates of a state dict to their matrices, under the names of a model without updates.

    >>> stem = "q.parametrizations.weight."
    >>> state = {stem + "original": torch.zeros(2, 2), stem + "0.a": torch.ones(1, 2), stem + "0.b": torch.ones(2, 1)}
    >>> merge_lora(state)
    {'q.weight': tensor([[1., 1.],
            [1., 1.]])}
    """
    plain = {}
    for name, tensor in state.items():
        if ORIGINAL.search(name):
            stem = name.removesuffix("original")
            plain[ORIGINAL.sub(r".\1", name)] = tensor + state[stem + "0.b"] @ state[stem + "0.a"]
        elif ".parametrizations." not in name:
            plain[name] = tensor
    return plain


def with_original_names(state: dict[str, Tensor], ours: Iterable[str]) -> dict[str, Tensor]:
    """Rename the tensors of a model without low-rank updates to fit a model with them, whose names are `ours`."""
    table = {ORIGINAL.sub(r".\1", name): name for name in ours if ORIGINAL.search(name)}
    return {table.get(name, name): tensor for name, tensor in state.items()}
