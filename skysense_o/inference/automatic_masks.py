"""All regions of an image without a word: a grid of clicks, the good masks kept, each once, then named.

After SamAutomaticMaskGenerator of Segment Anything (Kirillov et al. 2023). Alphabet: K clicks, H W pixels, h w grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

from skysense_o.clicks import box_from_mask
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.vocabulary import Vocabulary

CHUNK = 64
"""Clicks at a time."""
STABILITY_OFFSET = 1.0
"""Of the logits; Segment Anything's."""


@dataclass(frozen=True)
class Proposal:
    """One region. mask: bool (H,W). box: half-open XYXY. iou_pred: predicted IoU, 0..1.
    stability_score: IoU of the mask drawn tightly with the mask drawn loosely, 0..1. names: (name, cosine), best first.
    """

    mask: np.ndarray
    box: tuple[int, int, int, int]
    iou_pred: float
    stability_score: float
    classes: tuple[tuple[str, float], ...] = ()


def generate_masks(
    image: PromptedImage,
    vocabulary: Vocabulary | None = None,
    *,
    side: int = 16,
    iou_pred: float = 0.35,
    stability_score: float = 0.6,
    overlap: float = 0.7,
    most: int = 100,
) -> list[Proposal]:
    """Click on a grid and keep the masks that are good, stable and not told twice.

    Args:
        vocabulary: what the regions are named from; None: they have no classes.
        side: clicks along the longer side of the image; the other side has as many as keep the grid square.
        iou_pred, stability_score: thresholds of a mask, see `Proposal`. (The mini model predicts low IoU for its masks:
            at 0.35 and 0.6 three images gave 9 to 19 regions over 40 to 68 % of them, at 0.5 none.)
        overlap: IoU of the boxes above which the worse of two masks goes.
        most: how many masks are kept, the best.

    Returns:
        proposals, best quality first.

    Raises:
        ValueError: weights that take words only; `side` below 1, or a value outside 0..1.
    """
    for what, value in (("quality", iou_pred), ("stability", stability_score), ("overlap", overlap)):
        if not 0 <= value <= 1:
            raise ValueError(f"{what} {value} is out of range: 0 to 1")
    logits, good, stable = _clicked(image, click_grid(image.size, side), iou_pred, stability_score)
    if not len(logits):
        return []
    boxes = masks_to_boxes(logits > 0)
    kept = nms(boxes, good, overlap)[:most]
    masks = np.concatenate([(image.to_image(logits[k : k + 1]) > 0).cpu().numpy() for k in kept.tolist()])
    some = masks.any((1, 2))  # what lay in the padding only is gone
    masks, kept = masks[some], kept[torch.from_numpy(some).to(kept.device)]
    if not len(masks):
        return []
    classes = image.name(masks, vocabulary) if vocabulary else [[]] * len(masks)
    corners = [box_from_mask(mask) for mask in masks]
    return [
        Proposal(mask, box, float(good[k]), float(stable[k]), tuple(called))
        for mask, box, k, called in zip(masks, corners, kept.tolist(), classes)
    ]


def click_grid(size: tuple[int, int], side: int) -> Tensor:
    """(K,2) x,y of pixels, evenly spread over an image of (H,W), half a step from its rim.

    Raises:
        ValueError: side below 1.
    """
    if side < 1:
        raise ValueError(f"side {side} is out of range: at least one click along the longer side")
    step = max(size) / side
    y, x = ((torch.arange(n) + 0.5) * (pixels / n) - 0.5 for pixels, n in ((p, max(1, round(p / step))) for p in size))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)


def _clicked(
    image: PromptedImage, clicks: Tensor, iou_pred: float, stability_score: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (K,h,w), quality (K) and stability (K) of the clicks whose masks are good enough and not empty."""
    logits, good, stable = [], [], []
    for points in clicks.split(CHUNK):
        nowhere = torch.full((len(points), 4), float("nan"))
        drawn, value = image.predict_prompts(points[:, None], torch.ones(len(points), 1, dtype=torch.int64), nowhere)
        value, steady = value.clamp(0, 1), stability(drawn)
        some = (value >= iou_pred) & (steady >= stability_score) & (drawn > 0).any(-1).any(-1)
        logits.append(drawn[some])
        good.append(value[some])
        stable.append(steady[some])
    return torch.cat(logits), torch.cat(good), torch.cat(stable)


def stability(logits: Tensor, offset: float = STABILITY_OFFSET) -> Tensor:
    """(K,h,w) -> (K): IoU of the masks at `offset` above and below 0; 0 for a mask that is empty even there."""
    tight, loose = ((logits > level).sum((-2, -1)) for level in (offset, -offset))
    return tight / loose.clamp(min=1)
