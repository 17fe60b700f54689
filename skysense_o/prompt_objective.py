"""How clicks and boxes are trained: ask, compare, correct, ask again. B images, K queries, N points, H W pixels."""

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
"""points (B,K,N,2), labels (B,K,N), boxes (B,K,4), prepared pixels -> logits (B,K,h',w'), iou_pred (B,K)."""


class PromptObjective:
    """Dice and BCE on each mask, squared error on its predicted IoU (Kirillov et al. 2023), the mean over rounds; after
    each round a corrective click goes where the mask is wrong most.
    """

    def __init__(self, weight: float, rounds: int) -> None:
        """rounds: how often a query is asked in a step, at least 1."""
        if rounds < 1:
            raise ValueError(f"MODEL.LOSS.PROMPT_ROUNDS {rounds}: at least 1")
        self.weight, self.rounds = weight, rounds

    def __call__(
        self, decode: Decode, samples: Sequence[Sample], transforms: Sequence[ImageTransform], sem_seg: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            decode: the decoder, for the images of the batch.
            samples: B with `prompts`. frames: how they were prepared. sem_seg: (B,H,W) padded labels.

        Raises:
            ValueError: a sample without prompts.
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
            mask, error = prompt_terms(logits, iou_pred, target, known)
            terms["loss_prompt_mask"].append(mask)
            terms["loss_prompt_quality"].append(error)
            if turn + 1 < self.rounds:
                points, labels = _add_clicks(points, labels, target, logits > 0, known, transforms)
        return {name: self.weight * torch.stack(values).mean() for name, values in terms.items()}


def prompt_terms(logits: Tensor, iou_pred: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """(B,K,H,W) logits, masks, known pixels and (B,K) predicted IoU -> BCE + Dice, and the squared error of the IoU;
    means over the queries of a sample whose mask is not empty, then over samples.
    """
    asked = target.flatten(2).any(-1)
    bce = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none") * known
    each = bce.sum((2, 3)) / known.sum((2, 3)).clamp(min=1) + losses.mask_dice(logits, target, known)
    with torch.no_grad():
        predicted = (logits > 0) & known
        iou = (predicted & target).sum((2, 3)) / (predicted | target).sum((2, 3)).clamp(min=1)
    return losses.mean_of_means(each, asked), losses.mean_of_means((iou_pred.float() - iou).square(), asked)


def prepared_prompts(prompts: Sequence[dict], transforms: Sequence[ImageTransform]) -> tuple[Tensor, Tensor, Tensor]:
    """Points (B,K,N,2), labels (B,K,N) and boxes (B,K,4) of a batch, in pixels of the prepared images."""
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
    """One more point a query, at the end; where nothing is asked it is padding."""
    masks = [x.cpu().numpy() for x in (target, predicted, known)]
    added, kinds = torch.zeros(*points.shape[:2], 1, 2), torch.full((*labels.shape[:2], 1), -1)
    for b, transform in enumerate(transforms):
        for k in range(points.shape[1]):
            if masks[0][b, k].any():
                x, y, kind = corrective(*(m[b, k] for m in masks))
                added[b, k, 0], kinds[b, k, 0] = transform.points(torch.tensor([float(x), float(y)])), kind
    return torch.cat([points, added.to(points)], dim=2), torch.cat([labels, kinds.to(labels)], dim=2)
