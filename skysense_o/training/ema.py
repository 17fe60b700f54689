"""A moving average of the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class MovingAverage:
    """Average of trained parameters; early on it follows fast: decay is min(decay, (1 + n) / (10 + n)) at update n."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.other = {n: p.detach().clone() for n, p in self.parameters.items()}  # what the model does not hold now

    @torch.no_grad()
    def update(self) -> None:
        """Follow the model by one step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, parameter in self.parameters.items():
            self.other[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model holds the average, and `other` the weights being trained."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.other[name])
            self.other[name].copy_(kept)

    def state_dict(self) -> dict:
        """To be called within `applied()`: the file's model is the average, and this adds the weights being trained."""
        return {"updates": self.updates, "trained": self.other}

    def load_state_dict(self, state: dict) -> None:
        """To be called when the model holds the average, as a file gives it; leaves it with the weights to train on."""
        self.updates = state["updates"]
        for name, value in state["trained"].items():
            self.other[name].copy_(value)
        self._swap()
