"""Zero-shot evaluation of an image-text tower: classification and image-text retrieval."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from skysense_o.evaluation.figures import write_confusion
from skysense_o.evaluation.metrics import wilson
from skysense_o.inference.classify import BATCH, class_scores, image_vectors, phrase_vectors, text_vectors
from skysense_o.text_files import read_lines
from skysense_o.vocabulary import Vocabulary
from skysense_o.workers import Each, here

logger = logging.getLogger(__name__)

SYMMETRIES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    *(partial(np.rot90, k=k) for k in (1, 2, 3)),
    *(lambda image, k=k: np.rot90(image[:, ::-1], k) for k in range(4)),
)
"""All symmetries of a square except the identity. They can be used because a scene seen from above has no preferred
direction."""


@torch.no_grad()
def evaluate_pairs(
    model: nn.Module,
    records: Sequence[dict],
    read: Callable[[dict], np.ndarray],
    vocabulary: Vocabulary | None,
    templates: Sequence[str],
    side: int,
    figure: Path | None = None,
    flips: bool = False,
    each: Each | None = None,
) -> dict:
    """Evaluate classification of records with a "label", and retrieval of records with captions.

    Retrieval is only evaluated if there are more different captions than labels. A caption that several images have is
    correct for each of these images.

    Args:
        model: has a `tower`.
        records: N records with "label", "captions" or both.
        read: record -> image, uint8 (H,W,3) RGB.
        vocabulary: C classes in the order of the labels; None if there are no labels. A class has the score of its best
            phrase.
        templates: P sentences with one "{}". The embedding of a phrase is the normalised mean over the sentences.
        side: images are resized to this square, in pixels, if the tower has no `scene_side`.
        figure: path of the confusion matrix, without suffix; None: not written.
        flips: average the embeddings of an image, its three rotations by 90 degrees, and the mirror images of these.
        each: distributes the images over workers that hold the model; None: this process encodes all images.

    Returns:
        Classification: top1 with its 95 % interval top1_low and top1_high (Wilson), top5, chance (1/C), and per_class,
        class -> "top1", "top5" and "images". Retrieval: text_R@k (image to caption) and image_R@k (caption to image)
        for k = 1, 5, 10. All in 0..1.
    """
    was_training = model.training
    model.eval()
    images = _images(each or here(model), model.tower, records, read, side, flips)
    numbers: dict = {}
    if "label" in records[0]:
        truth = torch.tensor([r["label"] for r in records], device=images.device)
        scores = class_scores(images, phrase_vectors(model.tower, vocabulary, templates), vocabulary)
        numbers, matrix = _accuracy(scores, truth, vocabulary.classes)
        if figure and comm.is_main_process():
            write_confusion(figure, matrix, vocabulary.classes)
    captions = list(dict.fromkeys(c for r in records for c in r.get("captions", ())))
    if len(captions) > len({r.get("label") for r in records}):
        index_of = {caption: i for i, caption in enumerate(captions)}
        right = torch.zeros((len(records), len(captions)), dtype=torch.bool, device=images.device)
        for row, record in enumerate(records):
            right[row, [index_of[c] for c in record["captions"]]] = True
        scores = images @ text_vectors(model.tower, captions).T
        numbers.update({f"text_{key}": value for key, value in recalls(scores, right).items()})
        numbers.update({f"image_{key}": value for key, value in recalls(scores.T, right.T).items()})
    model.train(was_training)
    texts = (f"{key} {value:.4f}" for key, value in numbers.items() if isinstance(value, float))
    logger.info("%d images: %s", len(records), ", ".join(texts))
    return numbers


def read_templates(path: str | Path) -> list[str]:
    """Read prompt templates, one sentence with one "{}" per line; empty lines and lines that start with # are skipped.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line does not have exactly one "{}", or there is no line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no templates file at {str(path)!r}: give a file with one sentence with {{}} per line")
    lines = [line for line in read_lines(path) if not line.startswith("#")]
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise ValueError(f"{path}: {wrong[:1] or 'no line'}: each line needs one {{}}, as in 'an aerial photo of {{}}'")
    return lines


def _accuracy(scores: Tensor, truth: Tensor, classes: Sequence[str]) -> tuple[dict, np.ndarray]:
    """Scores (N,C) and N true labels -> the metrics and the confusion matrix (C,C)."""
    best = scores.topk(min(5, len(classes)), dim=1).indices
    first, among = best[:, 0] == truth, (best == truth[:, None]).any(1)
    matrix = torch.bincount(truth * len(classes) + best[:, 0], minlength=len(classes) ** 2).view(len(classes), -1)
    low, high = wilson(int(first.sum()), len(truth))
    per_class = {
        name: {"top1": float(first[own].float().mean()), "top5": float(among[own].float().mean()), "images": n}
        for label, name in enumerate(classes)
        if (n := int((own := truth == label).sum()))
    }
    numbers = {"top1": float(first.float().mean()), "top1_low": low, "top1_high": high, "chance": 1 / len(classes)}
    return {**numbers, "top5": float(among.float().mean()), "per_class": per_class}, matrix.cpu().numpy()


def recalls(scores: Tensor, right: Tensor) -> dict[str, float]:
    """Recall at k = 1, 5 and 10: the share of rows for which one of the k highest scores is in a correct column.

    Args:
        scores: (N,M).
        right: bool (N,M), the correct columns of each row.

    >>> recalls(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([[True, False], [True, False]]))["R@1"]
    0.5
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    hits = right.gather(1, order)
    return {f"R@{k}": float(hits[:, :k].any(1).float().mean()) for k in (1, 5, 10)}


def _images(each: Each, tower: nn.Module, records: Sequence[dict], read: Callable, side: int, flips: bool) -> Tensor:
    """Unit vectors (N,D) of all images, which are split across processes."""
    mine = range(comm.get_rank(), len(records), comm.get_world_size())
    vectors = torch.zeros((len(records), tower.dim), device=tower.pixel_mean.device)
    batches = [list(mine[first : first + BATCH]) for first in range(0, len(mine), BATCH)]
    for chosen, found in each(partial(_vectors, records, read, side, flips), batches, desc="images", unit="batch"):
        vectors[chosen] = found.to(vectors)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(vectors)
    return vectors


@torch.no_grad()
def _vectors(
    records: Sequence[dict], read: Callable, side: int, flips: bool, model: nn.Module, chosen: list[int]
) -> Tensor:
    """Encode K images -> unit vectors (K,D)."""
    side = model.tower.scene_side or side
    images = [cv2.resize(read(records[i]), (side, side), interpolation=cv2.INTER_LINEAR) for i in chosen]
    vectors = image_vectors(model.tower, images)
    if flips:
        others = [image_vectors(model.tower, [symmetry(image) for image in images]) for symmetry in SYMMETRIES]
        vectors = F.normalize(vectors + sum(others), dim=-1)
    return vectors.cpu()
