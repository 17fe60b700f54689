"""Who names regions: a vocabulary and the model, or a vision-language model.

Alphabet: R regions, C classes, H W pixels, h w grid.
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
"""Names told of each region."""
TEMPERATURE = 0.05
"""Of the softmax that turns cosines into a confidence."""
AT_A_TIME = 32
"""Regions whose full-size masks are held at once."""


class Namer(Protocol):
    """Anything that can be called so names regions.

    free: its names are free text, which needs its synonyms merged.
    """

    free: bool

    def __call__(self, rgb: np.ndarray, regions: np.ndarray) -> list[list[tuple[str, float]]]:
        """
        Args:
            rgb: uint8 (H,W,3). regions: uint16 (H,W), 1..R and 0 for the rest.

        Returns:
            for each region (name, confidence 0..1), best first, `TOP` at most; none where it knows no name.
        """
        ...


class VocabularyNamer:
    """The names of a vocabulary that regions look most like.

    by "features": softmax over the cosines of mask-pooled features with the classes. by "masks": the mean, over the
    region, of the probability that the decoder gives each name.
    """

    free = False

    def __init__(
        self, predictor: Predictor, vocabulary: Vocabulary, by: Literal["features", "masks"] = "masks"
    ) -> None:
        if by not in ("features", "masks"):
            raise ValueError(f"names by {by!r} are not known: features or masks")
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
    """The names of a vocabulary that regions look most like to an image-text tower, such as one that read captions:
    softmax over the cosines of the regions' mean features with the nearest phrase of each name."""

    free = False

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
    """(R,C) -> for each region its `TOP` names and their values, best first; background words are no classes."""
    asked = [i for i, background in enumerate(vocabulary.background) if not background]
    best, order = values[:, asked].topk(min(TOP, len(asked)), dim=1)
    return [
        [(vocabulary.classes[asked[i]], round(v, 4)) for i, v in zip(places, row)]
        for places, row in zip(order.tolist(), best.tolist())
    ]


def embeddings(seen: PromptedImage, regions: np.ndarray) -> Tensor:
    """(R,D) unit vectors of the regions 1..R, in the text space."""
    ids = range(1, int(regions.max()) + 1)
    parts = [
        seen.embed(np.stack([regions == k for k in ids[i : i + AT_A_TIME]])) for i in range(0, len(ids), AT_A_TIME)
    ]
    return torch.cat(parts)


def by_features(seen: PromptedImage, regions: np.ndarray, vocabulary: Vocabulary) -> Tensor:
    """(R,C): softmax over the classes of the cosines with the regions' mean features."""
    return F.softmax(seen.cosines(embeddings(seen, regions), vocabulary) / TEMPERATURE, dim=1)


def by_masks(seen: PromptedImage, regions: np.ndarray, vocabulary: Vocabulary) -> Tensor:
    """(R,C): mean probability of each name over each region, at the masks' own grid."""
    grid = seen.class_probabilities(vocabulary)
    share = region_shares(regions, seen.transform.padded, grid.shape[-2:]).to(grid)
    return torch.einsum("rn,cn->rc", share, grid.flatten(1))


def region_shares(regions: np.ndarray, padded: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(R,hw): how much of each region lies in each cell of a grid over the padded image; rows sum to 1."""
    (height, width), (h, w) = regions.shape, grid
    y = ((np.arange(height) + 0.5) * h / padded[0]).astype(int)
    x = ((np.arange(width) + 0.5) * w / padded[1]).astype(int)
    code = regions.astype(np.int64) * (h * w) + (y[:, None] * w + x[None])
    counts = np.bincount(code.ravel(), minlength=(int(regions.max()) + 1) * h * w).reshape(-1, h * w)[1:]
    return torch.from_numpy(counts / np.maximum(counts.sum(1, keepdims=True), 1)).float()
