"""Training losses: pure functions. Alphabet: B images, T names, D embedding, H W pixels, h w grid.

Each is a mean per sample over its valid pixels and names, then over the samples, so that it does not depend on how a
batch is shared between processes. Each is finite, and zero, where a sample has nothing to learn from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.sample import IGNORE


def one_hot(sem_seg: Tensor, names: int) -> Tensor:
    """(B,H,W) indices -> (B,T,H,W) bool; ignored pixels belong to no name."""
    return sem_seg[:, None] == torch.arange(names, device=sem_seg.device)[:, None, None]


def pixel_bce(logits: Tensor, sem_seg: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of each name by itself (SkySense-O, pixel-level loss; ignored pixels are ignored).

    Args:
        logits: (B,T,H,W). sem_seg: (B,H,W) int64. valid: (B,T) bool, the names that a sample really has.
    """
    weight = (sem_seg != IGNORE)[:, None] * valid[..., None, None].to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(
        logits.float(), one_hot(sem_seg, logits.shape[1]).float(), weight=weight.float(), reduction="none"
    )
    return _mean_of_means(each, weight)


def pixel_cross_entropy(logits: Tensor, sem_seg: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy over the names of a sample: they compete, as they do in the arg max. Arguments as `pixel_bce`."""
    masked = logits.float().masked_fill(~valid[..., None, None], float("-inf"))
    each = F.cross_entropy(masked, sem_seg, ignore_index=IGNORE, reduction="none")
    return _mean_of_means(each, (sem_seg != IGNORE).float())


def dice(logits: Tensor, sem_seg: Tensor, valid: Tensor) -> Tensor:
    """1 - 2|A.B| / (|A| + |B|) for each name in the picture (Milletari et al. 2016). Arguments as `pixel_bce`."""
    known = (sem_seg != IGNORE)[:, None].float()
    target = one_hot(sem_seg, logits.shape[1]).float()
    probability = logits.float().sigmoid() * known
    both = (probability * target).sum((2, 3))
    either = probability.sum((2, 3)) + target.sum((2, 3))
    present = valid & (target.sum((2, 3)) > 0)
    return _mean_of_means(1 - (2 * both + 1) / (either + 1), present.float())


def region_contrast(dense: Tensor, text: Tensor, sem_seg: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Region-to-text contrast: the mean feature of each region must find its own name among those of the sample.

    Args:
        dense: (B,D,h,w) features in the text space, not normalised. text: (B,T,D) unit vectors.
        sem_seg: (B,H,W) int64; a cell of the grid counts for a region by its share of that region's pixels.
        valid: (B,T) bool. temperature: of the softmax over names, above 0.
    """
    masks = F.adaptive_avg_pool2d(one_hot(sem_seg, text.shape[1]).float(), dense.shape[-2:])
    regions = F.normalize(torch.einsum("bthw,bdhw->btd", masks, dense.float()), dim=-1, eps=1e-6)
    scores = torch.einsum("bid,bjd->bij", regions, text.float()) / temperature
    scores = scores.masked_fill(~valid[:, None, :], float("-inf"))
    present = valid & (masks.sum((2, 3)) > 0)
    each = -scores.log_softmax(dim=-1).diagonal(dim1=1, dim2=2).masked_fill(~present, 0.0)
    return _mean_of_means(each, present.float())


def presence_bce(presence: Tensor, sem_seg: Tensor, valid: Tensor, complete: Tensor) -> Tensor:
    """Is the name in the picture? A name is known present where a pixel has it, known absent where every pixel is
    labelled and none has it; else nothing is known, and nothing is asked.

    Args:
        presence: (B,T) logits. complete: (B,) bool, every pixel of the picture (padding is none) is labelled.
            Others as `pixel_bce`.
    """
    present = one_hot(sem_seg, presence.shape[1]).flatten(2).any(-1)
    known = valid & (present | complete[:, None])
    each = F.binary_cross_entropy_with_logits(presence.float(), present.float(), reduction="none")
    return _mean_of_means(each, known.float())


def _mean_of_means(each: Tensor, weight: Tensor) -> Tensor:
    """Mean over what counts in each sample, then over the samples; a sample in which nothing counts gives 0."""
    total = (each * weight).flatten(1).sum(1)
    return (total / weight.expand_as(each).flatten(1).sum(1).clamp(min=1e-6)).mean()
