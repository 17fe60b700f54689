"""The objective of fine-tuning: the weighted losses of a batch.

Shape letters: B images, T classes, P templates, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o import losses, published_losses
from skysense_o.modeling import SentenceSimilarity
from skysense_o.sample import IGNORE, Sample

REGION_TERMS = ("region", "region_published", "vision_centric", "vision_centric_published")

TERMS = (
    "bce",
    "focal",
    "cross_entropy",
    "dice",
    "presence",
    "bags",
    "candidates",
    "captions",
    *REGION_TERMS,
)


class Objective:
    """The loss terms of `losses.py`, each with a weight; terms with weight 0 are not computed."""

    def __init__(
        self,
        weights: dict[str, float],
        *,
        temperature: float = 0.07,
        ignored_as_negative: bool = False,
        class_chunk: int | None = None,
        grid: int = 1,
    ) -> None:
        """
        Args:
            weights: name of a term, see TERMS -> weight.
            temperature: temperature of the region contrast and of the vision-centric loss.
            ignored_as_negative, class_chunk: see `losses.pixel_bce`.
            grid: side in label pixels of the cells on which losses of partly labelled samples (`says`) are computed.

        Raises:
            ValueError: a term is unknown, or a weight is negative.
        """
        wrong = {name: w for name, w in weights.items() if name not in TERMS or w < 0}
        if wrong:
            raise ValueError(f"loss weights {wrong}: they must be numbers from 0 for {', '.join(TERMS)}")
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.temperature, self.ignored_as_negative, self.class_chunk = temperature, ignored_as_negative, class_chunk
        self.grid = grid
        regular = {"vision_centric", "vision_centric_published"} & set(self.weights)
        self.similarity = SentenceSimilarity() if regular else None

    @classmethod
    def from_config(cls, cfg) -> Objective:
        loss = cfg.MODEL.LOSS
        weights = {
            "bce": loss.BCE,
            "focal": loss.FOCAL,
            "cross_entropy": loss.CROSS_ENTROPY,
            "dice": loss.DICE,
            "presence": loss.PRESENCE,
            "region": loss.REGION,
            "region_published": loss.REGION_PUBLISHED,
            "vision_centric": loss.VISION_CENTRIC,
            "vision_centric_published": loss.VISION_CENTRIC_PUBLISHED,
            "bags": loss.BAGS,
            "candidates": loss.CANDIDATES,
            "captions": loss.CAPTIONS,
        }
        return cls(
            weights,
            temperature=loss.REGION_TEMPERATURE,
            ignored_as_negative=loss.IGNORED_AS_NEGATIVE,
            class_chunk=loss.CLASS_CHUNK or None,
            grid=loss.GRID,
        )

    @property
    def needs_regions(self) -> bool:
        return any(name in self.weights for name in REGION_TERMS)

    def __call__(
        self,
        samples: Sequence[Sample],
        sem_seg: Tensor,
        logits: Tensor,
        presence: Tensor | None,
        text: Tensor,
        valid: Tensor,
        regions: Callable[[], Tensor],
    ) -> dict[str, Tensor]:
        """
        Args:
            samples: B samples, of which the classes and the visual similarity are used.
            sem_seg: (B,H,W) padded labels.
            logits: (B,T,h',w').
            presence: (B,T) logits of whether each class occurs in the image; None if the decoder gives none.
            text: (B,T,P,D) unit vectors.
            valid: (B,T) bool, False for padding.
            regions: returns (B,T,D) region features; called only if a term needs them.

        Returns:
            "loss_<term>" -> weighted scalar.
        """
        if presence is None and "presence" in self.weights:
            raise ValueError("this decoder gives no presence scores: set MODEL.LOSS.PRESENCE 0.0")
        pixels, chunk = (logits, sem_seg, valid), self.class_chunk
        complete = torch.stack([(s["sem_seg"] != IGNORE).all() for s in samples]).to(sem_seg.device)
        with full_precision(sem_seg.device):
            terms = {
                "bce": lambda: losses.pixel_bce(*pixels, ignored_as_negative=self.ignored_as_negative, chunk=chunk),
                "focal": lambda: losses.focal(*pixels, chunk=chunk),
                "cross_entropy": lambda: losses.pixel_cross_entropy(*pixels),
                "dice": lambda: losses.dice(*pixels, chunk=chunk),
                "presence": lambda: losses.presence_bce(presence, sem_seg, valid, complete),
                **(self._of_regions(samples, sem_seg, text, valid, regions()) if self.needs_regions else {}),
            }
            return {f"loss_{name}": w * terms[name]() for name, w in self.weights.items() if name in terms}

    def similarities(self, samples: Sequence[Sample], valid: Tensor) -> tuple[Tensor, Tensor | None]:
        """S_t and S_v of the vision-centric loss, (B,T,T); S_v is None if no sample has it."""
        alike = _stacked([self.similarity(s["vocabulary"].classes) for s in samples], valid)
        if not any("visual_similarity" in s for s in samples):
            return alike, None
        return alike, _stacked([s.get("visual_similarity", torch.zeros(0, 0)) for s in samples], valid)

    def _of_regions(
        self, samples: Sequence[Sample], sem_seg: Tensor, text: Tensor, valid: Tensor, regions: Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        present = losses.present_classes(sem_seg, valid.shape[1])
        unit = F.normalize(text.mean(dim=2), dim=-1, eps=1e-6)
        plain = (regions, present, unit, valid)
        published = {name for name in self.weights if name.endswith("_published")}
        scores = published_losses.published_region_scores(regions, unit, valid) if published else None
        alike, visual_similarity = self.similarities(samples, valid) if self.similarity else (None, None)
        unknown = torch.zeros((), device=valid.device) if visual_similarity is None else visual_similarity
        return {
            "region": lambda: losses.region_contrast(*plain, self.temperature),
            "region_published": lambda: published_losses.published_region_bce(scores, present, valid),
            "vision_centric": lambda: losses.vision_centric(*plain, alike, unknown, self.temperature),
            "vision_centric_published": lambda: published_losses.published_vision_centric(
                scores, present, valid, alike, visual_similarity
            ),
        }


def full_precision(device: torch.device) -> AbstractContextManager:
    """Disable autocast, which would compute products inside a loss in half precision."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def _stacked(matrices: Sequence[Tensor], valid: Tensor) -> Tensor:
    """B matrices (T_b,T_b) -> (B,T,T), padded with zeros."""
    stacked = torch.zeros((len(valid), valid.shape[1], valid.shape[1]), device=valid.device)
    for padded, matrix in zip(stacked, matrices):
        padded[: len(matrix), : len(matrix)] = matrix.to(padded)
    return stacked
