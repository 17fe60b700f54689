"""Optimiser groups as ordered patterns."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch
from tabulate import tabulate
from torch import nn

logger = logging.getLogger(__name__)


def build_optimizer(model: nn.Module, groups: Sequence[Sequence], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over groups of parameters; freezes what a group of learning-rate factor 0 names.

    Args:
        model: its parameters that are already frozen stay so and need no group.
        groups: ordered [pattern, learning-rate factor, weight decay]; the first pattern found in a name wins.

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
    settings, rows = [], []
    for (pattern, factor, decay), members in zip(groups, chosen):
        if not members:
            raise ValueError(f"the pattern {pattern!r} of SOLVER.GROUPS wins no parameter: take it out or mend it")
        count = sum(parameter.numel() for _, parameter in members)
        rows.append([pattern, factor, decay, len(members), count, members[0][0]])
        if factor == 0:
            for _, parameter in members:
                parameter.requires_grad_(False)
        else:
            parameters = [parameter for _, parameter in members]
            settings.append({"params": parameters, "lr": learning_rate * factor, "weight_decay": decay})
    headers = ["pattern", "lr factor", "decay", "tensors", "numbers", "first"]
    logger.info("Optimiser groups:\n%s", tabulate(rows, headers, intfmt=","))
    return torch.optim.AdamW(settings, lr=learning_rate)
