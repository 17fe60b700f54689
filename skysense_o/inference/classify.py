"""Which of some names fits a whole image best, and answers to questions about it. Alphabet: C classes, D embedding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from skysense_o import geometry, meta_arch, vqa  # noqa: F401  (fills the registry)
from skysense_o.checkpoint import build_with_weights, find_weights, load_weights
from skysense_o.device import choose_device
from skysense_o.inference.predictor import config_of
from skysense_o.modeling import build_tower
from skysense_o.vocabulary import TextBank, Vocabulary

BATCH = 64
LARGEST_SIDE = 512
"""Images are shown no larger, if the weights name no side: a scene is known by the whole of it."""


def class_vectors(tower: nn.Module, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C,D) unit vectors: the mean of a name in all templates, normalised again (Radford et al. 2021)."""
    sentences = [template.format(name) for name in classes for template in templates]
    return F.normalize(text_vectors(tower, sentences).view(len(classes), len(templates), -1).mean(1), dim=-1)


def text_cosines(model: nn.Module, names: Sequence[str]) -> np.ndarray:
    """(T,T) cosines of the names in the text tower of a SkySenseO, each the mean over its templates."""
    with torch.no_grad():
        vectors = class_vectors(model.tower, names, model.templates)
    return (vectors @ vectors.T).cpu().numpy()


def phrase_vectors(tower: nn.Module, vocabulary: Vocabulary, templates: Sequence[str]) -> Tensor:
    """(T,D) unit vectors, one a phrase of the vocabulary, as `class_vectors`."""
    return class_vectors(tower, list(chain.from_iterable(vocabulary.phrases)), templates)


def text_vectors(tower: nn.Module, strings: Sequence[str]) -> Tensor:
    """N strings -> (N,D) unit vectors."""
    return torch.cat([tower.encode_text(strings[i : i + BATCH]).float() for i in range(0, len(strings), BATCH)])


def image_vectors(tower: nn.Module, images: Sequence[np.ndarray]) -> Tensor:
    """Images, uint8 (H,W,3) RGB of one size, -> (B,D) unit vectors: pooled features, in the space of the words."""
    x, _ = geometry.prepare([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images], tower)
    return F.normalize(tower.encode_image(x).pooled.float(), dim=-1)


@torch.inference_mode()
def classify(model: nn.Module, image: np.ndarray, classes: Sequence[str]) -> list[tuple[str, float]]:
    """Names and their cosine with an image, uint8 (H,W,3) RGB, the best first; in the model's own templates."""
    step = max(1, -(-max(image.shape[:2]) // LARGEST_SIDE))
    size = [model.tower.scene_side or max(1, side // step) for side in image.shape[:2]]
    vector = image_vectors(model.tower, [cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)])
    scores = (class_vectors(model.tower, classes, model.templates) @ vector[0]).tolist()
    return sorted(zip(classes, scores), key=lambda row: -row[1])


def load_vqa_model(
    weights: str | Path,
    device: str = "auto",
    config_file: str | Path | None = None,
    trust: bool = False,
) -> nn.Module:
    """Build a `VQAModel` from weights.

    Args:
        weights, device, config_file: see `Predictor.from_pretrained`.
        trust: see `build_with_weights`.

    Raises:
        WeightsError: weights without a config. ValueError: weights of a model that does not answer.
    """
    path = find_weights(weights)
    cfg = config_of(path, config_file)
    if not hasattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "answer"):
        raise ValueError(f"{path} holds no VQA model: train one (configs/mini/vqa.yaml), give its safetensors")
    model, _ = build_with_weights(cfg, path, trust=trust)
    return model.to(choose_device(device)).eval()


def load_tower(weights: str, device: str = "auto") -> tuple[nn.Module, tuple[str, ...]]:
    """The image-text tower of any weights that hold their config, and the templates it was trained with.

    Raises:
        WeightsError: weights without a config: their templates and the size of their images are not known.
    """
    path = find_weights(weights)
    cfg = config_of(path)
    whole = nn.Module()
    whole.tower, whole.text_bank = build_tower(cfg), TextBank()
    load_weights(whole, path, ignore_unexpected=[r"^(?!tower\.)"])
    return whole.tower.to(choose_device(device)).eval(), tuple(cfg.MODEL.TEMPLATES)
