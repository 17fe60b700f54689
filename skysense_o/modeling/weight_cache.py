"""Cache tensors that depend only on a model's weights, not on its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class WeightCache:
    """Caches a tensor that is computed from parameters until a parameter changes. The tensor is in no state dict.

    With gradients enabled nothing is cached.

    >>> weight, cache = torch.ones(2), WeightCache()
    >>> with torch.no_grad():
    ...     first = cache(lambda: weight * 3, [weight])
    ...     same = cache(lambda: weight * 3, [weight])
    >>> same is first
    True
    """

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._value: Tensor | None = None

    def __call__(self, compute: Callable[[], Tensor], parameters: Iterable[Tensor]) -> Tensor:
        """Return the cached tensor, or call `compute` if a parameter was changed, moved or cast.

        Args:
            compute: computes the tensor from the parameters.
            parameters: all tensors that `compute` reads.
        """
        if torch.is_grad_enabled():
            return compute()
        key = tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in parameters)
        if self._key != key:
            self._key, self._value = key, compute()
        return self._value

    def clear(self) -> None:
        """Forget the tensor, after a change that parameters do not show."""
        self._key = self._value = None
