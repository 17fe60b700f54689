"""Training objective for partially labelled samples: the terms of `Objective`, computed with `partial_losses`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o import partial_losses as partly
from skysense_o.modeling.tower import Features
from skysense_o.objective import Objective, full_precision
from skysense_o.sample import NO, YES, Sample

Encode = Callable[[Sequence[Sequence[str]]], tuple[Tensor, Tensor]]
"""Phrases of R images -> unit vectors (R,N,D), and bool (R,N), False for padding."""

KNOWN_TERMS = (
    "bce",
    "focal",
    "cross_entropy",
    "dice",
    "presence",
    "region",
    "vision_centric",
    "bags",
    "candidates",
    "captions",
)


def partial_terms(
    objective: Objective,
    samples: Sequence[Sample],
    sem_seg: Tensor,
    logits: Tensor,
    presence: Tensor | None,
    text: Tensor,
    valid: Tensor,
    features: Features,
    encode: Encode,
) -> dict[str, Tensor]:
    """Compute the weighted losses, "loss_<term>" -> scalar. Arguments: see `Objective`; encode: encodes the captions.

    Raises:
        ValueError: a loss term needs complete labels.
    """
    wrong = sorted(set(objective.weights) - set(KNOWN_TERMS))
    if wrong:
        raise ValueError(
            f"MODEL.LOSS {', '.join(wrong).upper()} need complete labels, and these samples are partially"
            f" labelled: set them to 0; use only {', '.join(KNOWN_TERMS).upper()}"
        )
    names, step = logits.shape[1], objective.grid
    table = partly.says_table([_says(s) for s in samples], names).to(sem_seg.device)
    labels = sem_seg[:, step // 2 :: step, step // 2 :: step]
    target = partly.partial_targets(labels, table)
    with full_precision(sem_seg.device):
        full = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        terms = {
            "bce": lambda: partly.partial_bce(full, target),
            "focal": lambda: partly.partial_focal(full, target),
            "cross_entropy": lambda: partly.partial_cross_entropy(full, target),
            "dice": lambda: partly.partial_dice(full, target),
            "presence": lambda: partly.partial_presence(presence, target, labels, table),
            "bags": lambda: partly.bags(full, labels, table),
            "candidates": lambda: partly.candidates(full, labels, table),
            "captions": lambda: _captions(samples, features.pooled, encode, objective.temperature),
        }
        if objective.needs_regions:
            unit = F.normalize(text.mean(dim=2), dim=-1, eps=1e-6)
            present, against = (target == YES).flatten(2).any(-1), partly.opposed_names(labels, table)
            regions = (partly.pool_yes(features.dense, target), present, unit, valid, against)
            terms["region"] = lambda: partly.partial_region_contrast(*regions, objective.temperature)
            terms["vision_centric"] = lambda: _vision_centric(objective, samples, regions)
        return {f"loss_{name}": weight * terms[name]() for name, weight in objective.weights.items()}


def _says(sample: Sample) -> Tensor:
    """A sample's table `says` (V,C). A sample without it is fully labelled: value v is YES for class v, else NO."""
    if "says" in sample:
        return sample["says"]
    count = len(sample["vocabulary"])
    return torch.where(torch.eye(count, dtype=torch.bool), YES, NO).to(torch.int8)


def _vision_centric(objective: Objective, samples: Sequence[Sample], regions: tuple[Tensor, ...]) -> Tensor:
    alike, visual = objective.similarities(samples, valid=regions[3])
    visual = torch.zeros_like(alike) if visual is None else visual
    return partly.partial_vision_centric(*regions, alike, visual, objective.temperature)


def _captions(samples: Sequence[Sample], pooled: Tensor, encode: Encode, temperature: float) -> Tensor:
    rows = [b for b, sample in enumerate(samples) if "captions" in sample]
    if not rows:
        return pooled.new_zeros(())
    text, valid = encode([samples[b]["captions"] for b in rows])
    return partly.caption_contrast(pooled, text, valid, rows, temperature)
