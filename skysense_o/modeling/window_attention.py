"""Cut maps into windows for attention, and back. B images, H W tokens, C channels, M windows, N tokens."""

from __future__ import annotations

import torch
from torch import Tensor

APART = -100.0  # added to the logit of two tokens that must not attend to each other


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut a map into windows.

    Args:
        x: (B,H,W,C); H and W are multiples of `window`.
        window: window side, in tokens.

    Returns:
        (B*M,N,C), ordered by image.

    >>> tuple(to_windows(torch.zeros(2, 8, 12, 5), 4).shape)
    (12, 16, 5)
    """
    b, height, width, c = x.shape
    x = x.reshape(b, height // window, window, width // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Join windows (B*M,N,C) to a map (B,H,W,C), the inverse of `to_windows`."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], height, width, -1)


def shift_regions(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Region index (H,W) of each token of a map that was rolled by `shift`.

    Two tokens of a window were neighbours before the roll exactly if they have the same region.
    """

    def region(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window).int() + (index >= size - shift).int()

    return 3 * region(height)[:, None] + region(width)


def region_mask(regions: Tensor, window: int) -> Tensor:
    """Region indices (H,W) -> attention mask (M,N,N), to add to the logits: APART between regions, 0 inside one."""
    tokens = to_windows(regions[None, :, :, None], window)[..., 0]
    return torch.where(tokens[:, :, None] == tokens[:, None, :], 0.0, APART)
