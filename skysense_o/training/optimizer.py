"""Optimiser with parameter groups chosen by ordered patterns."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

logger = logging.getLogger(__name__)


def build_optimizer(
    model: nn.Module, groups: Sequence[Sequence], learning_rate: float, layer_decay: float = 1.0
) -> torch.optim.Optimizer:
    """Build AdamW with parameter groups. A group with learning-rate factor 0 is frozen.

    Args:
        model: parameters that are already frozen need no group.
        groups: ordered [regular expression, learning-rate factor, weight decay]; a parameter belongs to the first group
            whose expression is found in its name.
        learning_rate: base learning rate.
        layer_decay: learning rate of each layer of the image tower relative to the next layer (BEiT, Bao et al. 2022).

    Raises:
        ValueError: a group has no parameter, or a parameter has no group.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> optimizer = build_optimizer(model, [["^1", 0, 0], [".", 1.0, 0.01]], learning_rate=1e-3)
    >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
    [(2, 0.001)]
    """
    chosen: list[list[tuple[str, nn.Parameter]]] = [[] for _ in groups]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        index = next((i for i, group in enumerate(groups) if re.search(group[0], name)), None)
        if index is None:
            raise ValueError(f"no pattern of SOLVER.GROUPS matches {name!r}: end the list with ['.', 1.0, 0.0001]")
        chosen[index].append((name, parameter))
    settings, rows, shares = [], [], _layer_shares(model, layer_decay)
    for (pattern, factor, decay), members in zip(groups, chosen):
        if not members:
            raise ValueError(f"the pattern {pattern!r} of SOLVER.GROUPS matches no parameter: remove or correct it")
        count = sum(parameter.numel() for _, parameter in members)
        rows.append([pattern, factor, decay, len(members), count, members[0][0]])
        if factor == 0:
            for _, parameter in members:
                parameter.requires_grad_(False)
        else:
            by_share: dict[tuple[float, bool], list[nn.Parameter]] = {}
            for (
                _,
                parameter,
            ) in members:  # scalars are never sharded; fused AdamW takes sharded or whole tensors, not both
                by_share.setdefault((shares.get(parameter, 1.0), parameter.dim() == 0), []).append(parameter)
            for (share, _), parameters in by_share.items():
                settings.append({"params": parameters, "lr": learning_rate * factor * share, "weight_decay": decay})
    headers = ["pattern", "lr factor", "decay", "tensors", "parameters", "first"]
    logger.info("Optimiser groups:\n%s", tabulate(rows, headers, intfmt=","))
    # The fused step takes a quarter of the time, also on a CPU.
    return torch.optim.AdamW(settings, lr=learning_rate, fused=True)


def learning_rate(cfg: CfgNode) -> float:
    """BASE_LR; if LR_BATCH is set, times (IMS_PER_BATCH / LR_BATCH) ** 1 (linear) or ** 0.5 (sqrt)."""
    powers = {"linear": 1.0, "sqrt": 0.5}
    if not cfg.SOLVER.LR_BATCH:
        return cfg.SOLVER.BASE_LR
    if cfg.SOLVER.LR_RULE not in powers:
        raise ValueError(f"unknown SOLVER.LR_RULE {cfg.SOLVER.LR_RULE!r}: choose one of {', '.join(powers)}")
    rate = cfg.SOLVER.BASE_LR * (cfg.SOLVER.IMS_PER_BATCH / cfg.SOLVER.LR_BATCH) ** powers[cfg.SOLVER.LR_RULE]
    logger.info(
        "Learning rate %.3g: BASE_LR is for %d images per step, this run has %d",
        rate,
        cfg.SOLVER.LR_BATCH,
        cfg.SOLVER.IMS_PER_BATCH,
    )
    return rate


def _layer_shares(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Learning-rate factor of each parameter of the image tower, for layer-wise decay."""
    if decay == 1.0:
        return {}
    layers = model.tower.layers()
    return {
        parameter: decay ** (len(layers) - depth)
        for depth, modules in enumerate(layers)
        for module in modules
        for parameter in module.parameters()
    }
