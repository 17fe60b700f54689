"""Linear layers whose weight is stored in the order in which oneDNN multiplies, for inference on a CPU.

With plain layers, each call reorders the weight again. The operators are those that torch.compile uses. They are not a
public interface of torch, so `pack_linears` changes nothing where they are absent or disagree with the plain layer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest accepted difference between packed and plain layer, relative to the largest output."""


class PackedLinear(nn.Module):
    """A linear layer, optionally followed by a GELU, in the type of its weight; the module has no parameters.

    >>> layer = nn.Linear(8, 4)
    >>> with torch.no_grad():
    ...     torch.allclose(PackedLinear(layer)(torch.ones(3, 8)), layer(torch.ones(3, 8)), atol=1e-5)
    True
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = None if bias is None else bias.detach().to(weight.dtype)
        self.dtype, self.after = weight.dtype, "gelu" if gelu else "none"

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(...,in) -> (...,out), with this bias in place of the layer's own."""
        bias = self.bias if bias is None else bias.to(self.dtype)
        how = "none" if self.after == "gelu" else ""  # GELU by erf, not its approximation by tanh
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, bias, self.after, [], how)


def linear(layer: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer, plain or packed, with another bias than its own."""
    return layer(x, bias) if isinstance(layer, PackedLinear) else F.linear(x, layer.weight, bias)


@torch.no_grad()
def pack_linears(modules: Iterable[nn.Module]) -> int:
    """Pack, in place, the linear layers that are direct children of these modules.

    In an `nn.Sequential`, a GELU directly after a linear layer becomes part of the packed layer.

    Returns:
        The number of packed layers; 0 where this machine's torch cannot pack them, which is logged.
    """
    count, works = 0, {}
    for module in modules:
        for (name, child), (then, activation) in pairwise([*module.named_children(), ("", None)]):
            if not isinstance(child, nn.Linear) or child.weight.dtype not in TOLERANCE:
                continue
            dtype = child.weight.dtype
            if dtype not in works and not works.setdefault(dtype, _works(dtype)):
                logger.warning("linear layers in %s are not packed: this torch or this processor cannot do it", dtype)
            if not works[dtype]:
                continue
            gelu = isinstance(module, nn.Sequential) and isinstance(activation, nn.GELU)
            setattr(module, name, PackedLinear(child, gelu))
            if gelu:
                setattr(module, then, nn.Identity())
            count += 1
    return count


def _works(dtype: torch.dtype) -> bool:
    """Whether packed layers of a type agree with plain layers."""
    if not torch.backends.mkldnn.is_available():
        return False
    layer, x = nn.Linear(48, 40, dtype=dtype), torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    try:
        with torch.autocast("cpu", enabled=False):
            want = F.gelu(layer(x.to(dtype)))
            got = PackedLinear(layer, gelu=True)(x)
    except (AttributeError, RuntimeError):  # torch has no such operator, or none for this processor
        return False
    return bool((got - want).abs().max() <= TOLERANCE[dtype] * want.abs().max())
