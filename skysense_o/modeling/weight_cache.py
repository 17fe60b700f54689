"""Tensors that follow from weights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class WeightCache:
    """A tensor computed from parameters and no input: once per weights where no gradient is wanted. In no state."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._value: Tensor | None = None

    def __call__(self, compute: Callable[[], Tensor], parameters: Iterable[Tensor]) -> Tensor:
        """What `compute` gives; it is called again only when one of the parameters has changed, moved or been cast."""
        if torch.is_grad_enabled():
            return compute()
        key = tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in parameters)
        if self._key != key:
            self._key, self._value = key, compute()
        return self._value
