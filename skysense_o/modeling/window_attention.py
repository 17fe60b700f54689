"""Cutting maps into windows for attention, and back. B images, H W tokens, C channels, M windows, N tokens each."""

from __future__ import annotations

import torch
from torch import Tensor

APART = -100.0  # added to the logit of two tokens of one window that must not see each other


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B,H,W,C) -> (B*M,N,C), the windows of an image in a row; H and W are multiples of `window`."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // window, window, width // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B*M,N,C) -> (B,H,W,C): the inverse of `to_windows`."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], height, width, -1)


def shift_regions(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(H,W) int: after rolling a map by `shift`, tokens of different numbers were not neighbours before."""

    def region(size: int) -> Tensor:
        place = torch.arange(size, device=device)
        return (place >= size - window).int() + (place >= size - shift).int()

    return 3 * region(height)[:, None] + region(width)


def region_mask(regions: Tensor, window: int) -> Tensor:
    """(H,W) region numbers -> (M,N,N) to be added to logits: APART between tokens of different regions, else 0."""
    tokens = to_windows(regions[None, :, :, None], window)[..., 0]
    return torch.where(tokens[:, :, None] == tokens[:, None, :], 0.0, APART)
