"""Whole images: classification, and the loading of models for visual question answering.

Shape letters: B images, C classes, T phrases, D embedding.
"""

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
from skysense_o.checkpoint import build_with_weights, config_of, find_weights, load_weights
from skysense_o.device import choose_device
from skysense_o.modeling import build_tower
from skysense_o.text_bank import TextBank
from skysense_o.vocabulary import Vocabulary

BATCH = 64
"""Strings per call of the text tower."""
LARGEST_SIDE = 512
"""Larger images are reduced to about this side, in pixels, unless the weights define another (`scene_side`)."""


def class_vectors(tower: nn.Module, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Text embeddings of classes, (C,D) unit vectors: the normalised mean over the templates (Radford et al. 2021)."""
    sentences = [template.format(name) for name in classes for template in templates]
    return F.normalize(text_vectors(tower, sentences).view(len(classes), len(templates), -1).mean(1), dim=-1)


def text_cosines(model: nn.Module, names: Sequence[str]) -> np.ndarray:
    """Cosines (T,T) between the text embeddings of names, see `class_vectors`."""
    with torch.no_grad():
        vectors = class_vectors(model.tower, names, model.templates)
    return (vectors @ vectors.T).cpu().numpy()


def phrase_vectors(tower: nn.Module, vocabulary: Vocabulary, templates: Sequence[str]) -> Tensor:
    """Text embeddings of all phrases of a vocabulary, (T,D) unit vectors; see `class_vectors`."""
    return class_vectors(tower, list(chain.from_iterable(vocabulary.phrases)), templates)


def class_scores(images: Tensor, phrases: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Cosines of images and classes, (B,C). The best phrase of a class counts.

    Args:
        images: (B,D) unit vectors, see `image_vectors`.
        phrases: (T,D) unit vectors of the vocabulary, see `phrase_vectors`.
    """
    return geometry.best_of_phrases(phrases @ images.T, vocabulary.phrase_to_class, len(vocabulary)).T


def text_vectors(tower: nn.Module, strings: Sequence[str]) -> Tensor:
    """Text embeddings of N strings, (N,D) unit vectors."""
    return torch.cat([tower.encode_text(strings[i : i + BATCH]).float() for i in range(0, len(strings), BATCH)])


def image_vectors(tower: nn.Module, images: Sequence[np.ndarray]) -> Tensor:
    """Image embeddings, (B,D) unit vectors in the text space, from pooled features.

    Args:
        images: B arrays uint8 (H,W,3), RGB, all of one size.
    """
    x, _ = geometry.prepare([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images], tower)
    return F.normalize(tower.encode_image(x).pooled.float(), dim=-1)


@torch.inference_mode()
def classify(model: nn.Module, image: np.ndarray, vocabulary: Vocabulary) -> list[tuple[str, float]]:
    """Rank classes by their similarity with a whole image; the best phrase of a class counts.

    Args:
        model: has a tower, a text bank and templates, as a SkySenseO.
        image: uint8 (H,W,3), RGB.

    Returns:
        (class, cosine) pairs, the best first.
    """
    step = max(1, -(-max(image.shape[:2]) // LARGEST_SIDE))
    size = [model.tower.scene_side or max(1, side // step) for side in image.shape[:2]]
    vector = image_vectors(model.tower, [cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)])
    text, _ = model.text_bank(model.tower, [vocabulary], model.templates)  # encodes each word only once
    phrases = F.normalize(text[0].float().mean(1), dim=-1)
    scores = class_scores(vector, phrases, vocabulary)[0].tolist()
    return sorted(zip(vocabulary.classes, scores), key=lambda row: -row[1])


def load_vqa_model(
    weights: str | Path, device: str = "auto", config_file: str | Path | None = None, trust: bool = False
) -> nn.Module:
    """Load a model for visual question answering.

    Args:
        weights: see `find_weights`.
        device: see `choose_device`.
        config_file: YAML of the model, for weights that do not contain it.
        trust: see `read_weights`.

    Raises:
        WeightsError: the weights do not contain their config, or do not fit.
        ValueError: the weights are of a model that answers no questions.
    """
    path = find_weights(weights)
    cfg = config_of(path, config_file)
    if not hasattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "answer"):
        raise ValueError(f"{path} holds no VQA model: train one (configs/mini/vqa.yaml) and give its .safetensors")
    model, _ = build_with_weights(cfg, path, trust=trust)
    return model.to(choose_device(device)).eval()


def load_tower(weights: str, device: str = "auto") -> tuple[nn.Module, tuple[str, ...]]:
    """Load the image-text tower of a model, without its decoder.

    Args:
        weights: see `find_weights`; the file must contain its config.
        device: see `choose_device`.

    Returns:
        The tower, and the templates that it was trained with.

    Raises:
        WeightsError: the weights do not contain their config, or do not fit.
    """
    path = find_weights(weights)
    cfg = config_of(path)
    holder = nn.Module()
    holder.tower, holder.text_bank = build_tower(cfg), TextBank()
    load_weights(holder, path, ignore_unexpected=[r"^(?!tower\.)"])
    return holder.tower.to(choose_device(device)).eval(), tuple(cfg.MODEL.TEMPLATES)
