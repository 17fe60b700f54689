"""Training losses: pure functions. Alphabet: B images, T classes, D embedding, H W pixels, h w grid.

Each is a mean per sample over its valid pixels and names, then over the samples, so that it does not depend on how a
batch is shared between processes. Each is finite, and zero, where a sample has nothing to learn from.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skysense_o.sample import IGNORE

POOL_CHUNK = 64  # names whose masks are pooled at a time; changes memory only


def one_hot(sem_seg: Tensor, num_classes: int, first: int = 0) -> Tensor:
    """(B,H,W) indices -> (B,names,H,W) bool for the classes from `first` on; ignored pixels belong to no name."""
    index = torch.arange(first, first + num_classes, device=sem_seg.device)[:, None, None]
    return (sem_seg[:, None] == index) & (sem_seg != IGNORE)[:, None]


def present_classes(sem_seg: Tensor, num_classes: int) -> Tensor:
    """(B,H,W) indices -> (B,T) bool, whether any pixel has the name."""
    index = sem_seg.flatten(1).masked_fill(sem_seg.flatten(1) == IGNORE, num_classes)
    found = torch.zeros((len(sem_seg), num_classes + 1), dtype=torch.bool, device=sem_seg.device)
    return found.scatter_(1, index, True)[:, :num_classes]


def pixel_bce(
    logits: Tensor, sem_seg: Tensor, valid: Tensor, *, ignored_as_negative: bool = False, chunk: int | None = None
) -> Tensor:
    """Binary cross-entropy of each name by itself (SkySense-O, pixel-level loss).

    Args:
        logits: (B,T,h',w'), resized to the labels here.
        sem_seg: (B,H,W) int64.
        valid: (B,T) bool, the classes that a sample really has.
        ignored_as_negative: an ignored pixel counts as one of no name, as in the published code; else not at all.
        chunk: names at full size at a time, computed again in the backward pass; None: all. Changes no result.
    """

    def term(full: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(full, target.to(full.dtype), reduction="none")

    return _pixel_mean(term, logits, sem_seg, valid, ignored_as_negative, chunk)


def focal(
    logits: Tensor, sem_seg: Tensor, valid: Tensor, *, gamma: float = 2.0, alpha: float = 0.25, chunk: int | None = None
) -> Tensor:
    """Focal loss (Lin et al. 2017): `pixel_bce` in which what is already right counts less. Arguments as there.

    gamma: 0 is cross-entropy. alpha: weight of a name's own pixels, 1 - alpha of the others; -1: none.
    """

    def term(full: Tensor, target: Tensor) -> Tensor:
        return sigmoid_focal_loss(full, target.to(full.dtype), alpha=alpha, gamma=gamma)

    return _pixel_mean(term, logits, sem_seg, valid, False, chunk)


def pixel_cross_entropy(logits: Tensor, sem_seg: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy over the classes of a sample: they compete, as they do in the arg max. Arguments as `pixel_bce`."""
    masked = _at_labels(logits, sem_seg).masked_fill(~valid[..., None, None], float("-inf"))
    each = F.cross_entropy(masked, sem_seg, ignore_index=IGNORE, reduction="none")
    return mean_of_means(each, sem_seg != IGNORE)


def dice(logits: Tensor, sem_seg: Tensor, valid: Tensor, *, chunk: int | None = None) -> Tensor:
    """1 - 2|A.B| / (|A| + |B|) for each name in the image (Milletari et al. 2016). Arguments as `pixel_bce`."""
    known = (sem_seg != IGNORE)[:, None]

    def term(full: Tensor, target: Tensor) -> Tensor:
        return mask_dice(full, target, known)

    return mean_of_means(_each_name(term, logits, sem_seg, chunk), valid & present_classes(sem_seg, logits.shape[1]))


def mask_dice(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """(...,H,W) logits, masks and known pixels -> (...) Dice losses, smoothed by one pixel."""
    probability, target = logits.sigmoid() * known, target.to(logits.dtype)
    both, either = (probability * target).sum((-2, -1)), probability.sum((-2, -1)) + target.sum((-2, -1))
    return 1 - (2 * both + 1) / (either + 1)


def soft_mask_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """How far masks are from a teacher's soft ones (Hinton et al. 2015), mean over pixels: Kullback and Leibler's
    divergence of which class a pixel is of, and, mean over the classes, of whether it is of each.

    Args:
        logits: (B,C,h',w'), resized to the target here. target: (B,C,H,W) probabilities, each class by itself.
    """
    logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    target = target.clamp(1e-4, 1 - 1e-4)
    share = target / target.sum(1, keepdim=True)
    which = (share * (share.log() - F.log_softmax(logits, dim=1))).sum(1).mean()
    entropy = F.binary_cross_entropy(target, target)
    return which + F.binary_cross_entropy_with_logits(logits, target) - entropy


def pool_regions(dense: Tensor, sem_seg: Tensor, num_classes: int) -> Tensor:
    """The mean feature under each name's mask; zero for a name that is not in the image.

    Args:
        dense: (B,D,h,w). sem_seg: (B,H,W) int64; a cell of the grid counts by its share of the region's pixels.

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
    """Region-to-text contrast: each region must find its own name among those of the sample.

    Args:
        regions: (B,T,D), see `pool_regions`. present: (B,T) bool. text: (B,T,D) unit vectors. valid: (B,T) bool.
        temperature: of the softmax over classes, above 0.
    """
    scores = _cosines(regions, text) / temperature
    scores = scores.masked_fill(~valid[:, None, :], float("-inf"))
    each = -scores.log_softmax(dim=-1).diagonal(dim1=1, dim2=2).masked_fill(~present, 0.0)
    return mean_of_means(each, present & valid)


def published_region_scores(regions: Tensor, text: Tensor, valid: Tensor) -> Tensor:
    """Cosines of all regions with all classes, scaled so that a sample's smallest is 0 and its largest 1.

    So the published code has it: classes that are not in the image are regions too, of cosine 0 with everything.

    Returns:
        (B,T,T), region by name; 0 where either is invalid.
    """
    pairs = valid[:, :, None] & valid[:, None, :]
    scores = _cosines(regions, text)
    least = scores.masked_fill(~pairs, float("inf")).amin((1, 2), keepdim=True)
    most = scores.masked_fill(~pairs, float("-inf")).amax((1, 2), keepdim=True)
    return ((scores - least) / (most - least).clamp(min=1e-12)).masked_fill(~pairs, 0.0)


def published_region_bce(scores: Tensor, present: Tensor, valid: Tensor) -> Tensor:
    """The region loss of the published code: BCE with `published_region_scores` as logits, so it never falls below
    about log 2; 1 is asked for on the diagonal of present names. Images of a single name count as 0.
    """
    target = torch.diag_embed((present & valid).to(scores.dtype))
    each = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    return mean_of_means(each, valid[:, :, None] & valid[:, None, :], counts=present.sum(1) > 1)


def vision_centric(
    regions: Tensor,
    present: Tensor,
    text: Tensor,
    valid: Tensor,
    similarity: Tensor,
    visual_similarity: Tensor,
    temperature: float,
) -> Tensor:
    """Words that mean alike but look different must not be taken for each other.

    Our reading of the paper's L_vc = 1/(BN) sum [(1 - S_v) S_t L_region]^2, which leaves open what is summed:
    l_ij = BCE(r_i.w_j / temperature, [i = j]) for region i and name j, and the mean over the N x N pairs of a sample
    of [(1 - S_v) S_t l]^2. A name that is not in the image has no region, and its row adds nothing.

    Args:
        regions, present, text, valid, temperature: as `region_contrast`.
        similarity: (B,T,T) S_t, cosines of sentence embeddings; negative ones count as 0.
        visual_similarity: (B,T,T) S_v in 0..1, how alike two names look; 0 where unknown. The diagonal counts as 1.
    """
    scores = _cosines(regions, text) / temperature
    own = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)
    each = F.binary_cross_entropy_with_logits(scores, own.expand_as(scores), reduction="none")
    factor = (1 - visual_similarity.to(scores.dtype)) * (1 - own) * similarity.to(scores.dtype).clamp(min=0)
    squares = (factor * each).square().masked_fill(~present[:, :, None], 0.0)
    return mean_of_means(squares, valid[:, :, None] & valid[:, None, :])


def published_vision_centric(
    scores: Tensor, present: Tensor, valid: Tensor, similarity: Tensor, visual_similarity: Tensor | None
) -> Tensor:
    """The regulariser of the published code: mean |S_t (11 - score) S'| over pairs of different names.

    Args:
        scores: (B,T,T) S', see `published_region_scores`. similarity: (B,T,T) S_t.
        visual_similarity: (B,T,T) score / 10, 0 where the graph has no such pair (it then counts as 0);
            None: no graph, and the factor is 1.
    """
    factor = (
        1.0
        if visual_similarity is None
        else torch.where(visual_similarity > 0, 11 - 10 * visual_similarity.to(scores.dtype), 0.0)
    )
    different = ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    each = (similarity.to(scores.dtype) * scores * factor).abs()
    return mean_of_means(each, valid[:, :, None] & valid[:, None, :] & different, counts=present.sum(1) > 1)


def presence_bce(presence: Tensor, sem_seg: Tensor, valid: Tensor, complete: Tensor) -> Tensor:
    """Is the name in the image? A name is known present where a pixel has it, known absent where every pixel is
    labelled and none has it; else nothing is known, and nothing is asked.

    Args:
        presence: (B,T) logits. complete: (B,) bool, every pixel of the image (padding is none) is labelled.
            Others as `pixel_bce`.
    """
    present, presence = present_classes(sem_seg, presence.shape[1]), _wide(presence)
    each = F.binary_cross_entropy_with_logits(presence, present.to(presence.dtype), reduction="none")
    return mean_of_means(each, valid & (present | complete[:, None]))


def _wide(x: Tensor) -> Tensor:
    """At least single precision."""
    return x if x.dtype == torch.float64 else x.float()


def _cosines(regions: Tensor, text: Tensor) -> Tensor:
    """(B,T,D) regions and unit vectors -> (B,T,T), region by name."""
    return torch.einsum("bid,bjd->bij", F.normalize(_wide(regions), dim=-1, eps=1e-6), _wide(text))


def _at_labels(logits: Tensor, sem_seg: Tensor) -> Tensor:
    if logits.shape[-2:] == sem_seg.shape[-2:]:
        return _wide(logits)
    return F.interpolate(_wide(logits), size=sem_seg.shape[-2:], mode="bilinear", align_corners=False)


def _each_name(term: Callable, logits: Tensor, sem_seg: Tensor, chunk: int | None) -> Tensor:
    """(B,T): term(full-size logits, masks) of each chunk of names, which with several chunks is not kept but computed
    again in the backward pass.
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
    """Mean over known pixels and valid classes of a pixelwise term."""
    known = torch.ones_like(sem_seg, dtype=torch.bool) if ignored_as_negative else sem_seg != IGNORE
    sums = _each_name(lambda full, t: (term(full, t) * known[:, None]).sum((2, 3)), logits, sem_seg, chunk)
    return mean_of_means(sums / known.sum((1, 2)).clamp(min=1)[:, None], valid)


def mean_of_means(each: Tensor, weight: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean over what counts in each sample, then over the samples; a sample in which nothing counts gives 0.

    counts: (B,) bool, samples that are to give 0 whatever they hold.
    """
    weight = weight.to(each.dtype)
    means = (each * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)
    return (means if counts is None else means * counts).mean()
