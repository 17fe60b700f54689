"""Namers that choose a region's name from a vocabulary. Namers that answer in free text are in `vlm_namer`.

Shape letters: R regions, C classes, D embedding, H W pixels, h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skysense_o import geometry
from skysense_o.inference.classify import phrase_vectors
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.vocabulary import Vocabulary

if TYPE_CHECKING:
    from skysense_o.inference.predictor import Predictor

TOP = 5
"""Largest number of candidate names per region."""
TEMPERATURE = 0.05
"""Temperature of the softmax over cosines."""
REGION_BATCH = 32
"""Number of regions whose full-size masks are in memory at once."""


class Namer(Protocol):
    """Interface of the models and programs that give regions their names."""

    def __call__(self, rgb: np.ndarray, regions: np.ndarray) -> list[list[tuple[str, float]]]:
        """Name the regions of an image.

        Args:
            rgb: uint8 (H,W,3).
            regions: uint16 (H,W), regions 1..R and 0 for pixels of no region.

        Returns:
            for each region at most `TOP` candidates (name, confidence 0..1), best first; [] if it has no name.
        """
        ...


class VocabularyNamer:
    """Chooses a class of a vocabulary for each region, with the model.

    Args:
        predictor: the model.
        vocabulary: the classes; background classes are never chosen.
        by: "features": softmax over the cosines of mask-pooled features with the text embeddings. "masks": mean of
            the decoder's per-pixel probabilities over the region.

    Raises:
        ValueError: `by` is neither "features" nor "masks".
    """

    def __init__(
        self, predictor: Predictor, vocabulary: Vocabulary, by: Literal["features", "masks"] = "masks"
    ) -> None:
        if by not in ("features", "masks"):
            raise ValueError(f"unknown way of naming {by!r}: choose features or masks")
        self.predictor, self.vocabulary, self.by = predictor, vocabulary, by

    @torch.inference_mode()
    def __call__(self, rgb: np.ndarray, regions: np.ndarray) -> list[list[tuple[str, float]]]:
        count = int(regions.max())
        if not count:
            return []
        seen = self.predictor.set_image(rgb)
        values = (
            by_features(seen, regions, self.vocabulary)
            if self.by == "features"
            else by_masks(seen, regions, self.vocabulary)
        )
        return ranked(values, self.vocabulary)


class TowerNamer:
    """Chooses a class of a vocabulary for each region, with an image-text tower, for example one trained on captions.

    The cosine of a class is that of the region's mean feature with the best phrase of the class. Confidences are the
    softmax over these cosines.

    Args:
        tower: the tower.
        vocabulary: the classes; background classes are never chosen.
        templates: prompt templates of the text embeddings.
    """

    def __init__(self, tower: nn.Module, vocabulary: Vocabulary, templates: Sequence[str]) -> None:
        self.tower, self.vocabulary = tower.eval(), vocabulary
        with torch.inference_mode():
            self.text = phrase_vectors(tower, vocabulary, templates)

    @torch.inference_mode()
    def __call__(self, rgb: np.ndarray, regions: np.ndarray) -> list[list[tuple[str, float]]]:
        if not regions.max():
            return []
        x, _ = geometry.prepare([torch.from_numpy(rgb.copy()).permute(2, 0, 1)], self.tower)
        dense = self.tower.encode_image(x).dense[0].float()
        share = region_shares(regions, tuple(x.shape[-2:]), tuple(dense.shape[-2:])).to(dense)
        cosines = F.normalize(share @ dense.flatten(1).T, dim=1) @ self.text.T
        nearest = geometry.best_of_phrases(cosines.T, self.vocabulary.phrase_to_class, len(self.vocabulary)).T
        return ranked(F.softmax(nearest / TEMPERATURE, dim=1), self.vocabulary)


def ranked(values: Tensor, vocabulary: Vocabulary) -> list[list[tuple[str, float]]]:
    """Scores (R,C) -> for each region its `TOP` classes and their scores, best first, without background classes."""
    foreground = [i for i, background in enumerate(vocabulary.background) if not background]
    best, order = values[:, foreground].topk(min(TOP, len(foreground)), dim=1)
    return [
        [(vocabulary.classes[foreground[i]], round(v, 4)) for i, v in zip(indices, row)]
        for indices, row in zip(order.tolist(), best.tolist())
    ]


def embeddings(seen: PromptedImage, regions: np.ndarray) -> Tensor:
    """Mask-pooled features (R,D) of the regions 1..R, unit vectors in the text space."""
    ids = range(1, int(regions.max()) + 1)
    parts = [
        seen.embed(np.stack([regions == k for k in ids[i : i + REGION_BATCH]]))
        for i in range(0, len(ids), REGION_BATCH)
    ]
    return torch.cat(parts)


def by_features(seen: PromptedImage, regions: np.ndarray, vocabulary: Vocabulary) -> Tensor:
    """Class probabilities (R,C): softmax over the cosines of the regions' features with the text embeddings."""
    return F.softmax(seen.cosines(embeddings(seen, regions), vocabulary) / TEMPERATURE, dim=1)


def by_masks(seen: PromptedImage, regions: np.ndarray, vocabulary: Vocabulary) -> Tensor:
    """Mean probability (R,C) of each class over each region, computed at the resolution of the mask grid."""
    grid = seen.class_probabilities(vocabulary)
    share = region_shares(regions, seen.transform.padded, grid.shape[-2:]).to(grid)
    return torch.einsum("rn,cn->rc", share, grid.flatten(1))


def region_shares(regions: np.ndarray, padded: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Share (R,hw) of each region's pixels that lies in each cell of a grid over the padded image; rows sum to 1.

    Args:
        regions: integers (H,W), regions 1..R and 0 for pixels of no region.
        padded: size of the padded image in pixels.
        grid: (h,w).
    """
    (height, width), (h, w) = regions.shape, grid
    y = ((np.arange(height) + 0.5) * h / padded[0]).astype(int)
    x = ((np.arange(width) + 0.5) * w / padded[1]).astype(int)
    code = regions.astype(np.int64) * (h * w) + (y[:, None] * w + x[None])
    counts = np.bincount(code.ravel(), minlength=(int(regions.max()) + 1) * h * w).reshape(-1, h * w)[1:]
    return torch.from_numpy(counts / np.maximum(counts.sum(1, keepdims=True), 1)).float()
