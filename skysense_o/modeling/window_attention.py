"""Cut maps into windows for attention.

Shape letters: B images, H W the map's height and width in tokens, C channels, M windows per image, N tokens per window.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
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


@lru_cache(maxsize=64)
def window_order(height: int, width: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The order of a map's tokens by windows, and the order back; both include shifting and padding.

    Args:
        height, width: size of the map, which is padded to whole windows at the bottom and the right.
        window: window side, in tokens.
        shift: number of tokens by which the windows are moved down and right.

    Returns:
        (M*N), for each token of the windows its index in the flat map, or H*W for padding; and (H*W), for each token
        of the map its place in this order.

    >>> into, back = window_order(2, 3, 2, 0, torch.device("cpu"))
    >>> into.tolist(), back.tolist()
    ([0, 1, 3, 4, 2, 6, 5, 6], [0, 1, 4, 2, 3, 6])
    """
    with torch.inference_mode(False):  # otherwise training could not use tensors that an evaluation has cached
        places = torch.arange(height * width, device=device).view(height, width)
        places = F.pad(places, (0, -width % window, 0, -height % window), value=height * width)
        into = to_windows(places.roll((-shift, -shift), (0, 1))[None, :, :, None], window).flatten()
        return into, into.argsort(stable=True)[: height * width]


@lru_cache(maxsize=64)
def window_mask(
    height: int, width: int, window: int, shift: int, hide_padding: bool, device: torch.device
) -> Tensor | None:
    """The mask (M,N,N) for the order of `window_order`: APART between tokens that are no neighbours on the map, else 0.

    Args:
        hide_padding: if True, tokens of the map do not attend to padding either (APART).

    Returns:
        The mask; None if it is 0 everywhere.
    """
    bottom, right = -height % window, -width % window
    hide_padding = hide_padding and bool(bottom or right)
    if not shift and not hide_padding:
        return None
    with torch.inference_mode(False):
        height, width = height + bottom, width + right
        regions = torch.zeros(height, width, dtype=torch.int, device=device)
        if shift:
            regions = shift_regions(height, width, window, shift, device)
        if hide_padding:
            real = torch.ones(height, width, dtype=torch.bool, device=device)
            real[height - bottom :], real[:, width - right :] = False, False
            regions = regions.masked_fill(~real.roll((-shift, -shift), (0, 1)), -1)
        return region_mask(regions, window)


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
