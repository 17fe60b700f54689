"""The region losses of the published code. They differ from the paper; `losses.py` has our reading of the paper.

Shape letters: B images, T classes, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.losses import mean_of_means, region_cosines


def published_region_scores(regions: Tensor, text: Tensor, valid: Tensor) -> Tensor:
    """Cosines of all regions with all classes, scaled to 0..1 per sample.

    As in the published code, classes that are not in the image count as regions, with cosine 0 to all classes.

    Returns:
        (B,T,T), region by class; 0 where the region or the class is padding.
    """
    pairs = valid[:, :, None] & valid[:, None, :]
    scores = region_cosines(regions, text)
    low = scores.masked_fill(~pairs, float("inf")).amin((1, 2), keepdim=True)
    high = scores.masked_fill(~pairs, float("-inf")).amax((1, 2), keepdim=True)
    return ((scores - low) / (high - low).clamp(min=1e-12)).masked_fill(~pairs, 0.0)


def published_region_bce(scores: Tensor, present: Tensor, valid: Tensor) -> Tensor:
    """Region loss of the published code: BCE with `published_region_scores` as logits.

    The target is 1 on the diagonal for present classes, else 0. As the scores are in 0..1, the loss stays near log 2.
    Images with a single class contribute 0.
    """
    target = torch.diag_embed((present & valid).to(scores.dtype))
    each = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    return mean_of_means(each, valid[:, :, None] & valid[:, None, :], counts=present.sum(1) > 1)


def published_vision_centric(
    scores: Tensor, present: Tensor, valid: Tensor, similarity: Tensor, visual_similarity: Tensor | None
) -> Tensor:
    """Regulariser of the published code: mean |S_t (11 - score) S'| over pairs of different classes.

    Args:
        scores: (B,T,T) S', see `published_region_scores`.
        present: (B,T) bool, classes in the image.
        valid: (B,T) bool, False for padding.
        similarity: (B,T,T) S_t.
        visual_similarity: (B,T,T) score / 10. A pair that the graph does not have is 0, and so is its factor.
            None: there is no graph, and the factor is 1.

    Returns:
        scalar.
    """
    factor = (
        1.0
        if visual_similarity is None
        else torch.where(visual_similarity > 0, 11 - 10 * visual_similarity.to(scores.dtype), 0.0)
    )
    different = ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    each = (similarity.to(scores.dtype) * scores * factor).abs()
    return mean_of_means(each, valid[:, :, None] & valid[:, None, :] & different, counts=present.sum(1) > 1)
