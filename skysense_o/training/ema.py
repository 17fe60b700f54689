"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of the trainable parameters.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so the average follows quickly at the start.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = MovingAverage(model, decay=0.999)
    >>> before = model.weight.item()
    >>> model.weight.data += 1.0
    >>> average.update()
    >>> with average.applied():
    ...     print(round(model.weight.item() - before, 4))  # the decay is 1/10
    0.9
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: parameters that are frozen at this moment are left out.
            decay: largest decay, 0..1.
        """
        self.decay, self.updates = decay, 0
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.other = {
            n: p.detach().clone() for n, p in self.parameters.items()
        }  # the averaged weights; inside `applied`, the trained weights

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a training step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, parameter in self.parameters.items():
            self.other[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            current = parameter.detach().clone()
            parameter.copy_(self.other[name])
            self.other[name].copy_(current)

    def state_dict(self) -> dict:
        """The trained weights and the number of updates; call it inside `applied()`."""
        return {"updates": self.updates, "trained": self.other}

    def load_state_dict(self, state: dict) -> None:
        """Restore from `state_dict`. The model must have the averaged weights, and gets the trained weights."""
        self.updates = state["updates"]
        for name, value in state["trained"].items():
            self.other[name].copy_(value)
        self._swap()
