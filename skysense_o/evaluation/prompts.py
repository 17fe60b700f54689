"""Evaluate clicks and boxes: mean IoU after 1 click, after 5 clicks, and from a box."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from PIL import Image
from torch import nn

from skysense_o.clicks import box_from_mask, components, corrective, middle
from skysense_o.inference.drawing import color_labels
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.sample import IGNORE, Sample
from skysense_o.whole_files import whole
from skysense_o.workers import Each, here

logger = logging.getLogger(__name__)
CLICKS = 5
MIN_AREA = 0.001  # smallest component that is evaluated, as a fraction of the image
MAX_PARTS = 8  # maximum number of components per image; the largest ones are evaluated


@torch.no_grad()
def evaluate_prompts(
    model: nn.Module,
    samples: Sequence[Callable[[], Sample]],
    folder: Path | None = None,
    each: Each | None = None,
) -> dict[str, float]:
    """Evaluate the connected components of each class, with simulated clicks and with boxes (Kirillov et al. 2023).

    The first click is in the middle of the component. Each further click corrects an error of the mask before it.

    Args:
        model: a SkySenseO that takes prompts.
        samples: functions that return a Sample with `sem_seg`; they are split across processes.
        folder: an image with the masks of the first sample is written to it; None: no image.
        each: distributes the images over workers that hold the model; None: this process evaluates all images.

    Returns:
        Means over all components, without ignored pixels: "click1", "click5" and "box" are the IoU of the mask after
        one click, after five clicks and from the box; "box_filled" is the IoU if the whole box is the mask;
        "quality_error" is |predicted IoU - IoU| after one click, if an IoU is predicted. "parts" is the number of
        components. {} if there are no components.
    """
    was_training = model.training
    model.eval()
    mine = range(comm.get_rank(), len(samples), comm.get_world_size())
    found = dict((each or here(model))(partial(_one_sample, samples, folder), mine, desc="clicks and boxes"))
    model.train(was_training)
    found = {index: rows for part in comm.all_gather(found) for index, rows in part.items()}
    rows = [row for index in sorted(found) for row in found[index]]
    if not rows:
        return {}
    numbers = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    text = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items())
    logger.info("Clicks and boxes on %d components, mean IoU: %s", len(rows), text)
    return {**numbers, "parts": len(rows)}


Masks = list[tuple[np.ndarray, np.ndarray]]  # pairs of a component and the mask that is predicted from its box


@torch.no_grad()
def _one_sample(
    samples: Sequence[Callable[[], Sample]], folder: Path | None, model: nn.Module, index: int
) -> list[dict[str, float]]:
    """The metrics of each component of one sample; for the first sample, also write the image with its masks."""
    sample = samples[index]()
    rows, masks = _one_image(model, sample)
    if index == 0 and folder and masks:
        with whole(folder / "prompts.jpg") as part:
            _image(sample, masks).save(part, format="JPEG", quality=88)
    return rows


def _one_image(model: nn.Module, sample: Sample) -> tuple[list[dict[str, float]], Masks]:
    labels = sample["sem_seg"].numpy()
    known = labels != IGNORE
    parts = sorted(components(labels, max(1, int(MIN_AREA * labels.size))), key=np.sum, reverse=True)[:MAX_PARTS]
    image = PromptedImage(model, sample["image"].permute(1, 2, 0).numpy()) if parts else None
    rows, masks = [], []
    for part in parts:
        points, kinds, row = [middle(part)], [1], {}
        for count in range(1, CLICKS + 1):
            mask, iou_pred = image.prompt(points, kinds)
            if count == 1:
                row["click1"] = _iou(part, mask, known)
                if iou_pred is not None:
                    row["quality_error"] = abs(iou_pred - row["click1"])
            x, y, kind = corrective(part, mask, known)
            points, kinds = [*points, (x, y)], [*kinds, kind]
        row[f"click{CLICKS}"] = _iou(part, mask, known)
        box = box_from_mask(part)
        filled = np.zeros_like(part)
        filled[box[1] : box[3], box[0] : box[2]] = True
        mask, _ = image.prompt(box=box)
        row["box"], row["box_filled"] = _iou(part, mask, known), _iou(part, filled, known)
        rows.append(row)
        masks.append((part, mask))
    return rows, masks


def _iou(a: np.ndarray, b: np.ndarray, known: np.ndarray) -> float:
    return float((a & b & known).sum() / max(1, ((a | b) & known).sum()))


def _image(sample: Sample, masks: Masks) -> Image.Image:
    """The image, its four largest components, and the masks predicted from their boxes, side by side."""
    image = sample["image"].permute(1, 2, 0).numpy()
    panels = [image]
    for side in (0, 1):
        ids = np.full(image.shape[:2], 4)
        for i, pair in enumerate(masks[:4]):
            ids[pair[side]] = i
        colors = [(230, 60, 60), (60, 160, 230), (240, 200, 40), (80, 190, 90), (0, 0, 0)]
        mixed = image // 3 + color_labels(ids, colors) // 3 * 2
        panels.append(np.where((ids < 4)[..., None], mixed, image).astype(np.uint8))
    return Image.fromarray(np.concatenate(panels, axis=1))
