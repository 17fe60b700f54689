"""Optimiser groups as ordered patterns."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch
from tabulate import tabulate
from torch import nn

logger = logging.getLogger(__name__)


def build_optimizer(
    model: nn.Module, groups: Sequence[Sequence], learning_rate: float, layer_decay: float = 1.0
) -> torch.optim.Optimizer:
    """AdamW over groups of parameters; freezes what a group of learning-rate factor 0 names.

    Args:
        model: its parameters that are already frozen stay so and need no group.
        groups: ordered [pattern, learning-rate factor, weight decay]; the first pattern found in a name wins.
        layer_decay: the learning rate of each layer of the image tower, as a share of that of the layer above it.

    Raises:
        ValueError: a pattern that wins no parameter, or a parameter that no pattern fits.
    """
    chosen: list[list[tuple[str, nn.Parameter]]] = [[] for _ in groups]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        index = next((i for i, group in enumerate(groups) if re.search(group[0], name)), None)
        if index is None:
            raise ValueError(f"no pattern of SOLVER.GROUPS fits {name!r}: end the list with ['.', 1.0, 0.0001]")
        chosen[index].append((name, parameter))
    settings, rows, shares = [], [], _layer_shares(model, layer_decay)
    for (pattern, factor, decay), members in zip(groups, chosen):
        if not members:
            raise ValueError(f"the pattern {pattern!r} of SOLVER.GROUPS wins no parameter: take it out or mend it")
        count = sum(parameter.numel() for _, parameter in members)
        rows.append([pattern, factor, decay, len(members), count, members[0][0]])
        if factor == 0:
            for _, parameter in members:
                parameter.requires_grad_(False)
        else:
            by_share: dict[float, list[nn.Parameter]] = {}
            for _, parameter in members:
                by_share.setdefault(shares.get(parameter, 1.0), []).append(parameter)
            for share, parameters in by_share.items():
                settings.append({"params": parameters, "lr": learning_rate * factor * share, "weight_decay": decay})
    headers = ["pattern", "lr factor", "decay", "tensors", "numbers", "first"]
    logger.info("Optimiser groups:\n%s", tabulate(rows, headers, intfmt=","))
    return torch.optim.AdamW(settings, lr=learning_rate, fused=True)  # a quarter of the time, on a CPU too


def _layer_shares(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Parameter of the image tower -> share of the learning rate (layer-wise decay, as in BEiT, Bao et al. 2022)."""
    if decay == 1.0:
        return {}
    layers = model.tower.layers()
    return {
        parameter: decay ** (len(layers) - depth)
        for depth, modules in enumerate(layers)
        for module in modules
        for parameter in module.parameters()
    }
