"""Whether a class is anywhere in an image, as a probability.

The decoder's own presence score is trained to be one, but on images from outside the training it is nearly always high.
The mask of a phrase tells more, so calibrated weights use it instead: `tools/calibrate_presence.py` fits a logistic
regression (Platt, 1999) on validation images.

Shape letters: T phrases, h' w' grid of the masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from skysense_o.geometry import ImageTransform

LEAST_SHARE = 0.005
"""A class counts as present if it covers at least this share of an image."""


def mask_scores(logits: Tensor, transform: ImageTransform) -> Tensor:
    """For each phrase the logit that LEAST_SHARE of the image's cells reach; above 0, the mask covers that share.

    Args:
        logits: (T,h',w') over the padded image.
        transform: of the image; cells of the padding do not count.

    Returns:
        float (T,).
    """
    rows, columns = (
        math.ceil(side * cells / padded)
        for side, cells, padded in zip(transform.size, logits.shape[-2:], transform.padded)
    )
    count = max(1, round(LEAST_SHARE * rows * columns))
    # Phrase by phrase, because `topk` copies its input, and the masks of a thousand phrases are large.
    return torch.stack([mask[:rows, :columns].flatten().topk(count).values[-1] for mask in logits]).float()


class Presence:
    """The probability that a phrase is in an image."""

    def __init__(self, factors: Sequence[float] = ()) -> None:
        """
        Args:
            factors: slope and offset of a logistic regression on `mask_scores`; (): not calibrated, the probability is
                the sigmoid of the decoder's own score. The config key MODEL.KNOWN.PRESENCE has this form.

        Raises:
            ValueError: the number of factors is neither 0 nor 2.
        """
        if len(factors) not in (0, 2):
            raise ValueError(
                f"MODEL.KNOWN.PRESENCE {list(factors)} has {len(factors)} numbers: give two, a slope and an offset"
                " (tools/calibrate_presence.py computes them), or none"
            )
        self.factors = tuple(float(x) for x in factors)

    def __call__(self, own: Tensor, logits: Tensor, transform: ImageTransform) -> Tensor:
        """Compute the probabilities of the phrases of an image.

        Args:
            own: (T,), the decoder's own presence scores.
            logits, transform: see `mask_scores`.

        Returns:
            (T,), 0..1.
        """
        if not self.factors:
            return own.float().sigmoid()
        slope, offset = self.factors
        return (slope * mask_scores(logits, transform) + offset).sigmoid()
