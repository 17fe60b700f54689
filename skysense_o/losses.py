"""Training losses: pure functions.

Each loss is a mean over the valid pixels and classes of a sample, then over the samples. So the loss does not depend on
how a batch is divided between processes. A sample without valid pixels or classes contributes zero.

>>> logits, sem_seg = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
>>> valid = torch.ones(1, 2, dtype=torch.bool)
>>> round(pixel_bce(logits, sem_seg, valid).item(), 4)
0.6931
>>> round(dice(logits, sem_seg, valid).item(), 4)  # 1 - (2 * 8 + 1) / (8 + 16 + 1)
0.32

Shape letters: B images, T classes, D embedding, H W pixels, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skysense_o.sample import IGNORE

POOL_CHUNK = 64  # number of classes whose masks are pooled at a time; affects memory, not results


def one_hot(sem_seg: Tensor, num_classes: int, first: int = 0) -> Tensor:
    """(B,H,W) indices -> (B,num_classes,H,W) bool, for the classes from `first` on; ignored pixels have no class."""
    index = torch.arange(first, first + num_classes, device=sem_seg.device)[:, None, None]
    return (sem_seg[:, None] == index) & (sem_seg != IGNORE)[:, None]


def present_classes(sem_seg: Tensor, num_classes: int) -> Tensor:
    """(B,H,W) indices -> (B,T) bool, whether any pixel has the class."""
    index = sem_seg.flatten(1).masked_fill(sem_seg.flatten(1) == IGNORE, num_classes)
    present = torch.zeros((len(sem_seg), num_classes + 1), dtype=torch.bool, device=sem_seg.device)
    return present.scatter_(1, index, True)[:, :num_classes]


def pixel_bce(
    logits: Tensor, sem_seg: Tensor, valid: Tensor, *, ignored_as_negative: bool = False, chunk: int | None = None
) -> Tensor:
    """Binary cross-entropy, independently per class (SkySense-O, pixel-level loss).

    Args:
        logits: (B,T,h',w'), resized to the label size here.
        sem_seg: (B,H,W) int64, class indices or IGNORE.
        valid: (B,T) bool, False for padding.
        ignored_as_negative: ignored pixels count as negatives of every class, as in the published code.
        chunk: number of classes computed at full resolution at a time, and recomputed in the backward pass; None: all
            classes at once. It affects memory, not results.

    Returns:
        scalar.
    """

    def term(full: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(full, target.to(full.dtype), reduction="none")

    return _pixel_mean(term, logits, sem_seg, valid, ignored_as_negative, chunk)


def focal(
    logits: Tensor, sem_seg: Tensor, valid: Tensor, *, gamma: float = 2.0, alpha: float = 0.25, chunk: int | None = None
) -> Tensor:
    """Focal loss (Lin et al. 2017): `pixel_bce` with less weight on pixels that are already right.

    Args:
        logits, sem_seg, valid, chunk: see `pixel_bce`.
        gamma: exponent of the focal factor; 0 is cross-entropy.
        alpha: weight of positive pixels; negative ones have 1 - alpha. -1: no weights.

    Returns:
        scalar.
    """

    def term(full: Tensor, target: Tensor) -> Tensor:
        return sigmoid_focal_loss(full, target.to(full.dtype), alpha=alpha, gamma=gamma)

    return _pixel_mean(term, logits, sem_seg, valid, False, chunk)


def pixel_cross_entropy(logits: Tensor, sem_seg: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy over the classes of a sample, which compete as in the argmax. Arguments: see `pixel_bce`."""
    masked = _at_labels(logits, sem_seg).masked_fill(~valid[..., None, None], float("-inf"))
    each = F.cross_entropy(masked, sem_seg, ignore_index=IGNORE, reduction="none")
    return mean_of_means(each, sem_seg != IGNORE)


def dice(logits: Tensor, sem_seg: Tensor, valid: Tensor, *, chunk: int | None = None) -> Tensor:
    """1 - 2|A.B| / (|A| + |B|) per class of the image (Milletari et al. 2016). Arguments: see `pixel_bce`."""
    known = (sem_seg != IGNORE)[:, None]

    def term(full: Tensor, target: Tensor) -> Tensor:
        return mask_dice(full, target, known)

    return mean_of_means(_per_class(term, logits, sem_seg, chunk), valid & present_classes(sem_seg, logits.shape[1]))


def mask_dice(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Logits, masks and labelled pixels (...,H,W) -> Dice losses (...), smoothed by one pixel."""
    probability, target = logits.sigmoid() * known, target.to(logits.dtype)
    both, either = (probability * target).sum((-2, -1)), probability.sum((-2, -1)) + target.sum((-2, -1))
    return 1 - (2 * both + 1) / (either + 1)


def soft_mask_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Divergence of masks from a teacher's soft masks (Hinton et al. 2015), a mean over pixels.

    It is the sum of two Kullback-Leibler divergences. The first compares the distributions over classes. The second
    compares the yes-or-no probability of each class, and is averaged over classes.

    Args:
        logits: (B,C,h',w'), resized to the target here. target: (B,C,H,W) probabilities, independent per class.
    """
    logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    target = target.clamp(1e-4, 1 - 1e-4)
    share = target / target.sum(1, keepdim=True)
    which = (share * (share.log() - F.log_softmax(logits, dim=1))).sum(1).mean()
    entropy = F.binary_cross_entropy(target, target)
    return which + F.binary_cross_entropy_with_logits(logits, target) - entropy


def pool_regions(dense: Tensor, sem_seg: Tensor, num_classes: int) -> Tensor:
    """Mean feature under the mask of each class; zero for a class that is not in the image.

    Args:
        dense: (B,D,h,w) features.
        sem_seg: (B,H,W) int64. A grid cell is weighted by the number of its pixels that have the class.

    Returns:
        (B,T,D), not normalised.
    """
    parts = []
    for first in range(0, num_classes, POOL_CHUNK):
        masks = one_hot(sem_seg, min(POOL_CHUNK, num_classes - first), first).to(_wide(dense).dtype)
        parts.append(F.adaptive_avg_pool2d(masks, dense.shape[-2:]))
    masks = torch.cat(parts, dim=1)
    return torch.einsum("bthw,bdhw->btd", masks, _wide(dense)) / masks.sum((2, 3)).clamp(min=1e-6)[..., None]


def region_contrast(regions: Tensor, present: Tensor, text: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Region-to-text contrast (SkySense-O): classify each region among the classes of the sample.

    Args:
        regions: (B,T,D), see `pool_regions`.
        present: (B,T) bool, classes in the image.
        text: (B,T,D) unit vectors.
        valid: (B,T) bool, False for padding.
        temperature: temperature of the softmax over classes, above 0.

    Returns:
        scalar.
    """
    scores = region_cosines(regions, text) / temperature
    scores = scores.masked_fill(~valid[:, None, :], float("-inf"))
    each = -scores.log_softmax(dim=-1).diagonal(dim1=1, dim2=2).masked_fill(~present, 0.0)
    return mean_of_means(each, present & valid)


def vision_centric(
    regions: Tensor,
    present: Tensor,
    text: Tensor,
    valid: Tensor,
    similarity: Tensor,
    visual_similarity: Tensor,
    temperature: float,
) -> Tensor:
    """Vision-centric loss (SkySense-O): separate classes with similar words that look different.

    The paper's L_vc = 1/(BN) sum [(1 - S_v) S_t L_region]^2 does not say what is summed. For each sample we take the
    mean of [(1 - S_v) S_t l_ij]^2 over all pairs (i, j) of its classes. l_ij = BCE(r_i.w_j / temperature, [i = j])
    compares the region of class i with the text of class j. Classes that are not in the image have no region and
    contribute 0.

    Args:
        regions, present, text, valid, temperature: see `region_contrast`.
        similarity: (B,T,T) S_t, cosines of sentence embeddings; negative ones count as 0.
        visual_similarity: (B,T,T) S_v in 0..1; 0 if unknown. The diagonal counts as 1.

    Returns:
        scalar.
    """
    scores = region_cosines(regions, text) / temperature
    own = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)
    each = F.binary_cross_entropy_with_logits(scores, own.expand_as(scores), reduction="none")
    factor = (1 - visual_similarity.to(scores.dtype)) * (1 - own) * similarity.to(scores.dtype).clamp(min=0)
    squares = (factor * each).square().masked_fill(~present[:, :, None], 0.0)
    return mean_of_means(squares, valid[:, :, None] & valid[:, None, :])


def presence_bce(presence: Tensor, sem_seg: Tensor, valid: Tensor, complete: Tensor) -> Tensor:
    """Binary cross-entropy of whether a class is in the image.

    A class is present if a pixel has it. It is absent if every pixel is labelled and no pixel has it.
    Otherwise its presence is unknown, and the class does not count.

    Args:
        presence: (B,T) logits.
        sem_seg, valid: see `pixel_bce`.
        complete: (B,) bool, every pixel of the image is labelled; padding does not count.

    Returns:
        scalar.
    """
    present, presence = present_classes(sem_seg, presence.shape[1]), _wide(presence)
    each = F.binary_cross_entropy_with_logits(presence, present.to(presence.dtype), reduction="none")
    return mean_of_means(each, valid & (present | complete[:, None]))


def _wide(x: Tensor) -> Tensor:
    """Convert a tensor to float32, unless it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def region_cosines(regions: Tensor, text: Tensor) -> Tensor:
    """(B,T,D) regions and unit vectors -> (B,T,T) cosines, region by class."""
    return torch.einsum("bid,bjd->bij", F.normalize(_wide(regions), dim=-1, eps=1e-6), _wide(text))


def _at_labels(logits: Tensor, sem_seg: Tensor) -> Tensor:
    if logits.shape[-2:] == sem_seg.shape[-2:]:
        return _wide(logits)
    return F.interpolate(_wide(logits), size=sem_seg.shape[-2:], mode="bilinear", align_corners=False)


def _per_class(term: Callable, logits: Tensor, sem_seg: Tensor, chunk: int | None) -> Tensor:
    """(B,T): term(full-size logits, masks), one chunk of classes at a time. If there are several chunks, each is
    recomputed in the backward pass, to save memory.
    """

    def part(some: Tensor, first: int) -> Tensor:
        return term(_at_labels(some, sem_seg), one_hot(sem_seg, some.shape[1], first))

    num_classes = logits.shape[1]
    if not chunk or chunk >= num_classes:
        return part(logits, 0)
    starts = range(0, num_classes, chunk)
    return torch.cat([checkpoint(part, logits[:, s : s + chunk], s, use_reentrant=False) for s in starts], dim=1)


def _pixel_mean(
    term: Callable, logits: Tensor, sem_seg: Tensor, valid: Tensor, ignored_as_negative: bool, chunk: int | None
) -> Tensor:
    """Mean of a term per pixel over labelled pixels and valid classes."""
    known = torch.ones_like(sem_seg, dtype=torch.bool) if ignored_as_negative else sem_seg != IGNORE
    sums = _per_class(lambda full, t: (term(full, t) * known[:, None]).sum((2, 3)), logits, sem_seg, chunk)
    return mean_of_means(sums / known.sum((1, 2)).clamp(min=1)[:, None], valid)


def mean_of_means(each: Tensor, weight: Tensor, counts: Tensor | None = None) -> Tensor:
    """Weighted mean per sample, then mean over the samples.

    Args:
        each: (B,...) values.
        weight: (B,...) numbers or bool. A sample whose weights are all 0 contributes 0.
        counts: (B,) bool; False: the sample contributes 0. None: all count.

    >>> mean_of_means(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[True, False], [True, True]]))
    tensor(3.5000)
    """
    weight = weight.to(each.dtype)
    means = (each * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)
    return (means if counts is None else means * counts).mean()
