"""Training losses for partial labels.

A target is int8 (B,T,H,W): YES, NO or UNKNOWN for each phrase and pixel. UNKNOWN (and MAYBE,
see sample.py) is not a negative: it adds nothing.
If every target is known, each loss here equals its counterpart in `losses.py`, `partial_vision_centric` up to a factor.

Shape letters: B images, T phrases, V label values, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from skysense_o.losses import mask_dice, mean_of_means, region_cosines
from skysense_o.sample import MAYBE, NO, UNKNOWN, YES

ABSENT = -1e4  # a logit that adds nothing to a sum of exponentials but has a finite gradient


def says_table(says: Sequence[Tensor], names: int) -> Tensor:
    """(V,C) int8 tables of a batch -> (B,T,256), T = names: what each label value means for each phrase, or UNKNOWN."""
    table = torch.full((len(says), names, 256), UNKNOWN, dtype=torch.int8)
    for row, one in zip(table, says):
        row[: one.shape[1], : one.shape[0]] = one.T
    return table


def partial_targets(sem_seg: Tensor, table: Tensor) -> Tensor:
    """(B,H,W) label values and a `says_table` -> (B,T,H,W) int8: YES, NO or UNKNOWN. Bags and MAYBE become UNKNOWN."""
    table = torch.where((table > YES) | (table == MAYBE), UNKNOWN, table)
    return torch.stack([one[:, values] for one, values in zip(table, sem_seg)])


def partial_bce(logits: Tensor, target: Tensor) -> Tensor:
    """BCE, averaged over known (phrase, pixel) pairs of each sample, then over samples. logits, target: (B,T,H,W)."""
    each = F.binary_cross_entropy_with_logits(logits, (target == YES).to(logits.dtype), reduction="none")
    return mean_of_means(each, target != UNKNOWN)


def partial_focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss (Lin et al. 2017): `partial_bce` with the focal weights gamma and alpha."""
    each = sigmoid_focal_loss(logits, (target == YES).to(logits.dtype), alpha=alpha, gamma=gamma)
    return mean_of_means(each, target != UNKNOWN)


def partial_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in which each phrase that is YES in a pixel competes with all phrases that are NO in this pixel.

    The terms of a pixel are averaged over its YES phrases, then over the pixels that have a YES phrase.
    """
    yes = target == YES
    against = logits.masked_fill(target != NO, ABSENT).logsumexp(dim=1, keepdim=True)
    each = F.softplus(against.expand_as(logits)[yes] - logits[yes])
    count = yes.sum(1, keepdim=True)
    share = 1 / count.clamp(min=1).expand_as(logits)[yes]
    sums = logits.new_zeros(len(logits)).index_add(0, yes.nonzero()[:, 0], each * share)
    return (sums / (count > 0).flatten(1).sum(1).clamp(min=1)).mean()


def candidates(logits: Tensor, sem_seg: Tensor, table: Tensor) -> Tensor:
    """Learning from candidate labels (Jin and Ghahramani 2002): a pixel has one of its MAYBE phrases, so the sum
    of their probabilities competes with the phrases that are NO. The loss is the mean over the pixels with a MAYBE
    phrase; a sample without such a pixel contributes 0.

    Without this term, a data set of one class makes all other phrases improbable in its images, because no pixel there
    is labelled YES for them.

    Args:
        logits: (B,T,H,W). sem_seg: (B,H,W) label values. table: see `says_table`.
    """
    said = torch.stack([one[:, values] for one, values in zip(table, sem_seg)])
    some, against = (logits.masked_fill(said != what, ABSENT).logsumexp(dim=1) for what in (MAYBE, NO))
    return mean_of_means(F.softplus(against - some), (said == MAYBE).any(1))


def partial_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss of each phrase that is YES in some pixel, over the pixels where the phrase is known."""
    yes = target == YES
    return mean_of_means(mask_dice(logits, yes, target != UNKNOWN), yes.flatten(2).any(-1))


def bags(logits: Tensor, sem_seg: Tensor, table: Tensor) -> Tensor:
    """Multiple-instance learning (Pathak et al. 2015). If a label value means "at least n percent are this phrase", its
    pixels are a bag, and the n percent with the highest logits are trained as positives.

    The loss is the mean over the bags of a sample; a sample without bags contributes 0.

    Args:
        logits: (B,T,H,W). sem_seg: (B,H,W) label values. table: see `says_table`; n from 2 to 100 makes a bag.
    """
    means = []
    for one, values, says in zip(logits, sem_seg, table):
        terms = []
        for name, value in (says > YES).nonzero().tolist():
            inside = one[name][values == value]
            if len(inside):
                count = max(1, round(len(inside) * int(says[name, value]) / 100))
                terms.append(F.softplus(-inside.topk(count).values.mean()))
        means.append(torch.stack(terms).mean() if terms else one.new_zeros(()))
    return torch.stack(means).mean()


def partial_presence(scores: Tensor, target: Tensor, sem_seg: Tensor, table: Tensor) -> Tensor:
    """BCE of "is the phrase in the image?": yes if a pixel or a bag has it, no if all pixels are NO, else skipped.

    Args:
        scores: (B,T) logits. Others as in `bags` and `partial_bce`.
    """
    shown = torch.zeros_like(table[:, 0], dtype=torch.bool).scatter_(1, sem_seg.flatten(1), True)
    found = (target == YES).flatten(2).any(-1) | ((table > YES) & shown[:, None]).any(-1)
    absent = (target == NO).flatten(2).all(-1)
    each = F.binary_cross_entropy_with_logits(scores.float(), found.float(), reduction="none")
    return mean_of_means(each, found | absent)


def opposed_names(sem_seg: Tensor, table: Tensor) -> Tensor:
    """(B,T,T) bool, [i, j]: phrase j is NO wherever phrase i is YES, so that j is a negative for the region of i."""
    counts = torch.zeros(len(table), 256, device=table.device)
    counts.scatter_add_(1, sem_seg.flatten(1), torch.ones_like(sem_seg.flatten(1), dtype=counts.dtype))
    yes, doubtful = (table == YES).to(counts.dtype), (table != NO).to(counts.dtype)
    return torch.einsum("btv,bv,buv->btu", yes, counts, doubtful) == 0


def pool_yes(dense: Tensor, target: Tensor) -> Tensor:
    """(B,D,h,w) features, (B,T,H,W) targets -> (B,T,D): the mean feature where a phrase is YES; 0 where it never is."""
    masks = F.adaptive_avg_pool2d((target == YES).float(), dense.shape[-2:])
    return torch.einsum("bthw,bdhw->btd", masks, dense.float()) / masks.sum((2, 3)).clamp(min=1e-6)[..., None]


def partial_region_contrast(
    regions: Tensor, present: Tensor, text: Tensor, valid: Tensor, against: Tensor, temperature: float
) -> Tensor:
    """`losses.region_contrast` in which a region's negatives are only the phrases that it is known not to be.

    against: (B,T,T) bool, region by phrase, see `opposed_names`.
    """
    scores = torch.einsum("bid,bjd->bij", F.normalize(regions, dim=-1, eps=1e-6), text.float()) / temperature
    own = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(~(own | (against & valid[:, None, :])), ABSENT)
    each = -scores.log_softmax(dim=-1).diagonal(dim1=1, dim2=2)
    return mean_of_means(each.masked_fill(~present, 0.0), present & valid)


def partial_vision_centric(
    regions: Tensor,
    present: Tensor,
    text: Tensor,
    valid: Tensor,
    against: Tensor,
    similarity: Tensor,
    visual_similarity: Tensor,
    temperature: float,
) -> Tensor:
    """`losses.vision_centric` over the pairs (i, j) whose phrase j is known not to be in the region of phrase i.

    The mean is over these pairs alone. `losses.vision_centric` also counts pairs that contribute 0: those of a phrase
    with itself, and of phrases without a region. A partially labelled sample has so many of them that they would make
    the loss small.

    against: (B,T,T) bool, region by phrase, see `opposed_names`. Others as in `losses.vision_centric`.
    """
    own = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    pairs = (present & valid)[:, :, None] & valid[:, None, :] & against & ~own
    factor = (1 - visual_similarity) * similarity.clamp(min=0)
    return mean_of_means((factor * F.softplus(region_cosines(regions, text) / temperature)).square(), pairs)


def caption_contrast(pooled: Tensor, text: Tensor, valid: Tensor, rows: Sequence[int], temperature: float) -> Tensor:
    """Cross-entropy of choosing an image's caption, the first of N captions (Radford et al. 2021, image to text).

    Args:
        pooled: (B,D) features of all images of the batch. rows: indices of the R images that have captions.
        text: (R,N,D) unit vectors of the N captions of each of these images. valid: (R,N) bool, False for padding.

    Returns:
        Scalar: the sum over the R images divided by B, so that a batch with few captions gives a small loss.
    """
    scores = torch.einsum("rd,rnd->rn", F.normalize(pooled[list(rows)].float(), dim=-1), text.float()) / temperature
    scores = scores.masked_fill(~valid, ABSENT)
    return -scores.log_softmax(dim=-1)[:, 0].sum() / len(pooled)
