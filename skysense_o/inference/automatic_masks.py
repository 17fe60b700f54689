"""Automatic mask generation: segment all regions of an image with a grid of clicks.

Follows SamAutomaticMaskGenerator of Segment Anything (Kirillov et al. 2023).

Shape letters: K clicks, H W pixels, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

from skysense_o.clicks import box_from_mask
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.vocabulary import Vocabulary

CHUNK = 64
"""Clicks per call of the decoder."""
STABILITY_OFFSET = 1.0
"""Offset of the logits for the stability score; the value of Segment Anything."""


@dataclass(frozen=True)
class Proposal:
    """One region that was found without words.

    Attributes:
        mask: bool (H,W).
        box: half-open XYXY, in pixels.
        iou_pred: the IoU that the model predicts for its mask, 0..1. Models with MODEL.SEM_SEG_HEAD.CLASS_MAPS predict
            none, so for them it is the stability score.
        stability_score: IoU of the mask at a high threshold with the mask at a low threshold, 0..1.
        classes: (class, cosine) pairs, the best first; empty without a vocabulary.
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
    stability_score: float = 0.4,
    overlap: float = 0.7,
    most: int = 100,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Proposal]:
    """Click on a grid of points, and keep the masks that are good, stable and not duplicates.

    Args:
        image: the result of `Predictor.set_image`, for weights that were trained with prompts.
        vocabulary: classes to name the regions with; None to leave them without classes.
        side: points along the longer side of the image; the shorter side has the same spacing.
        iou_pred: minimum predicted IoU of a mask, 0..1; see `Proposal` for models with class maps, such as `mini`.
        stability_score: minimum stability of a mask, 0..1. With 0.4, `mini` gives 10, 75 and 100 regions that cover 88,
            93 and 92 % of demo/yellowstone_0.15m.jpg, foz_30m.tif and fields_30m.jpg; with 0.6, 3, 20 and 33 regions.
        overlap: of two masks whose boxes have a larger IoU, only the better mask is kept (non-maximum suppression).
        most: maximum number of masks.
        progress: is called with the share of the clicks that are done, 0..1.

    Returns:
        Regions, the highest `iou_pred` first.

    Raises:
        ValueError: the weights were trained without prompts, `side` is below 1, or a threshold is outside 0..1.

    >>> from skysense_o import Predictor
    >>> image = Predictor.from_pretrained("mini", device="cpu").set_image("demo/fields_30m.jpg")
    >>> masks = generate_masks(image, Vocabulary.parse("field,road"), side=4) if image.takes_prompts else []
    >>> all(mask.mask.any() and mask.iou_pred >= 0.35 for mask in masks)
    True
    """
    for name, value in (("iou_pred", iou_pred), ("stability_score", stability_score), ("overlap", overlap)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} {value} is out of range: 0 to 1")
    logits, ious, stabilities = _predict_clicks(
        image, click_grid(image.size, side), iou_pred, stability_score, progress
    )
    if not len(logits):
        return []
    boxes = masks_to_boxes(logits > 0)
    selected = nms(boxes, ious, overlap)[:most]
    masks = np.concatenate([(image.to_image(logits[k : k + 1]) > 0).cpu().numpy() for k in selected.tolist()])
    not_empty = masks.any((1, 2))  # masks that lay only in the padding are empty now
    masks, selected = masks[not_empty], selected[torch.from_numpy(not_empty).to(selected.device)]
    if not len(masks):
        return []
    classes = image.name(masks, vocabulary) if vocabulary else [[]] * len(masks)
    return [
        Proposal(mask, box_from_mask(mask), float(ious[k]), float(stabilities[k]), tuple(pairs))
        for mask, k, pairs in zip(masks, selected.tolist(), classes)
    ]


def click_grid(size: tuple[int, int], side: int) -> Tensor:
    """Points on a regular grid over an image; the outer points lie half a spacing from the edges of the image.

    Args:
        size: (H,W) in pixels.
        side: points along the longer side.

    Returns:
        (K,2) x,y in pixels.

    Raises:
        ValueError: side is below 1.

    >>> click_grid((2, 4), 2).tolist()
    [[0.5, 0.5], [2.5, 0.5]]
    """
    if side < 1:
        raise ValueError(f"side {side} is out of range: 1 or more")
    step = max(size) / side
    y, x = ((torch.arange(n) + 0.5) * (pixels / n) - 0.5 for pixels, n in ((p, max(1, round(p / step))) for p in size))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)


def _predict_clicks(
    image: PromptedImage,
    clicks: Tensor,
    iou_pred: float,
    stability_score: float,
    progress: Callable[[float], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (K,h,w), predicted IoU (K) and stability (K) of the clicks whose masks pass both thresholds."""
    logits, ious, stabilities = [], [], []
    for done, points in enumerate(clicks.split(CHUNK), 1):
        no_box = torch.full((len(points), 4), float("nan"))
        masks, iou = image.predict_prompts(points[:, None], torch.ones(len(points), 1, dtype=torch.int64), no_box)
        stable = stability(masks)
        iou = stable if iou is None else iou.clamp(0, 1)
        good = (iou >= iou_pred) & (stable >= stability_score) & (masks > 0).any(-1).any(-1)
        logits.append(masks[good])
        ious.append(iou[good])
        stabilities.append(stable[good])
        progress(min(1.0, done * CHUNK / len(clicks)))
    return torch.cat(logits), torch.cat(ious), torch.cat(stabilities)


def stability(logits: Tensor, offset: float = STABILITY_OFFSET) -> Tensor:
    """The stability score: IoU of each mask thresholded at +offset with the same mask thresholded at -offset.

    Args:
        logits: (K,h,w).

    Returns:
        (K), 0..1; 0 for an empty mask.

    >>> stability(torch.tensor([[[2.0, 0.5], [-5.0, -5.0]]])).tolist()
    [0.5]
    """
    tight, loose = ((logits > level).sum((-2, -1)) for level in (offset, -offset))
    return tight / loose.clamp(min=1)
