"""Iterative prompt training with corrective clicks.

Shape letters: B images, K prompts per image, N points per prompt, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o import losses
from skysense_o.clicks import corrective
from skysense_o.geometry import ImageTransform
from skysense_o.sample import IGNORE, Sample

Decode = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Points (B,K,N,2), their labels (B,K,N) and boxes (B,K,4), all in pixels of the prepared images -> mask logits
(B,K,h',w') and predicted IoU (B,K)."""


class PromptObjective:
    """Dice and BCE on each mask and squared error on its predicted IoU (Kirillov et al. 2023), averaged over rounds.

    After each round every prompt gets one more click, in the largest error of its mask.
    """

    def __init__(self, weight: float, rounds: int) -> None:
        """
        Args:
            weight: weight of the mask loss and of the IoU loss.
            rounds: number of decoder passes per step, at least 1.

        Raises:
            ValueError: `rounds` is below 1.
        """
        if rounds < 1:
            raise ValueError(f"MODEL.LOSS.PROMPT_ROUNDS {rounds} is out of range: at least 1")
        self.weight, self.rounds = weight, rounds

    def __call__(
        self, decode: Decode, samples: Sequence[Sample], transforms: Sequence[ImageTransform], sem_seg: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            decode: runs the decoder on the images of the batch, see `Decode`.
            samples: B samples with `prompts`.
            transforms: one per image, from `geometry.prepare`.
            sem_seg: (B,H,W) labels, padded with IGNORE.

        Returns:
            "loss_prompt_mask" and, if the decoder predicts the IoU, "loss_prompt_quality".

        Raises:
            ValueError: a sample has no prompts.
        """
        if not all("prompts" in sample for sample in samples):
            raise ValueError("MODEL.LOSS.PROMPT needs samples with prompts: set INPUT.PROMPTS above 0")
        prompts, (height, width) = [sample["prompts"] for sample in samples], sem_seg.shape[-2:]
        target = torch.stack(
            [F.pad(p["masks"], (0, width - p["masks"].shape[2], 0, height - p["masks"].shape[1])) for p in prompts]
        ).to(sem_seg.device)
        known = (sem_seg != IGNORE)[:, None].expand_as(target)
        points, labels, boxes = (x.to(sem_seg.device) for x in prepared_prompts(prompts, transforms))
        terms: dict[str, list[Tensor]] = {"loss_prompt_mask": [], "loss_prompt_quality": []}
        for turn in range(self.rounds):
            logits, iou_pred = decode(points, labels, boxes)
            logits = F.interpolate(logits.float(), size=(height, width), mode="bilinear", align_corners=False)
            for name, term in zip(terms, prompt_terms(logits, iou_pred, target, known)):
                terms[name].append(term)
            if turn + 1 < self.rounds:
                points, labels = _add_clicks(points, labels, target, logits > 0, known, transforms)
        return {name: self.weight * torch.stack(values).mean() for name, values in terms.items() if values}


def prompt_terms(logits: Tensor, iou_pred: Tensor | None, target: Tensor, known: Tensor) -> tuple[Tensor, ...]:
    """The mask loss of one round and, if an IoU was predicted, its loss.

    Args:
        logits: (B,K,H,W).
        iou_pred: (B,K) predicted IoU; None: not predicted.
        target: bool (B,K,H,W); an empty mask is left out.
        known: bool (B,K,H,W); False where the label is ignored.

    Returns:
        BCE + Dice, and the squared error of the predicted IoU; averaged over the prompts of an image, then over images.
    """
    not_empty = target.flatten(2).any(-1)
    bce = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none") * known
    each = bce.sum((2, 3)) / known.sum((2, 3)).clamp(min=1) + losses.mask_dice(logits, target, known)
    term = losses.mean_of_means(each, not_empty)
    if iou_pred is None:
        return (term,)
    with torch.no_grad():
        predicted = (logits > 0) & known
        iou = (predicted & target).sum((2, 3)) / (predicted | target).sum((2, 3)).clamp(min=1)
    return term, losses.mean_of_means((iou_pred.float() - iou).square(), not_empty)


def prepared_prompts(prompts: Sequence[dict], transforms: Sequence[ImageTransform]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack the prompts of a batch and map them to pixels of the prepared images.

    Args:
        prompts: B `Prompts`, each with K prompts.
        transforms: one per image.

    Returns:
        points (B,K,N,2), labels (B,K,N) padded with -1, boxes (B,K,4).
    """
    most = max(p["points"].shape[1] for p in prompts)
    points = [F.pad(f.points(p["points"]), (0, 0, 0, most - p["points"].shape[1])) for p, f in zip(prompts, transforms)]
    labels = [F.pad(p["labels"], (0, most - p["labels"].shape[1]), value=-1) for p in prompts]
    boxes = [f.boxes(p["boxes"]) for p, f in zip(prompts, transforms)]
    return torch.stack(points), torch.stack(labels), torch.stack(boxes)


def _add_clicks(
    points: Tensor,
    labels: Tensor,
    target: Tensor,
    predicted: Tensor,
    known: Tensor,
    transforms: Sequence[ImageTransform],
) -> tuple[Tensor, Tensor]:
    """Append one corrective click per prompt; padding where the target is empty."""
    masks = [x.cpu().numpy() for x in (target, predicted, known)]
    added, kinds = torch.zeros(*points.shape[:2], 1, 2), torch.full((*labels.shape[:2], 1), -1)
    for b, transform in enumerate(transforms):
        for k in range(points.shape[1]):
            if masks[0][b, k].any():
                x, y, kind = corrective(*(m[b, k] for m in masks))
                added[b, k, 0], kinds[b, k, 0] = transform.points(torch.tensor([float(x), float(y)])), kind
    return torch.cat([points, added.to(points)], dim=2), torch.cat([labels, kinds.to(labels)], dim=2)
