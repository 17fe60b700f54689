"""The interface of VQA models, and the normalisation of answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
NUMBERS = {
    **{word: str(i) for i, word in enumerate(_ONES)},
    **{word: str(10 * i) for i, word in enumerate(_TENS, 2)},
    **{f"{ten} {one}": str(10 * i + j) for i, ten in enumerate(_TENS, 2) for j, one in enumerate(_ONES[1:10], 1)},
}
ARTICLES = re.compile(r"\b(a|an|the)\b")
NUMBER = re.compile(r"\b(" + "|".join(sorted(NUMBERS, key=len, reverse=True)) + r")\b")


class VQAModel(Protocol):
    """Interface of models that answer questions about images."""

    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """Answer one question per image.

        Args:
            images: B images, uint8 (3,H,W) RGB, any sizes.
            questions: one per image.

        Returns:
            B answers.
        """


def normalise(answer: str) -> str:
    """Normalise an answer for comparison.

    Lower case, no articles, no punctuation, single spaces, and number words up to 99 as digits.

    >>> normalise("The Twenty-two boats.")
    '22 boats'
    """
    words = ARTICLES.sub(" ", re.sub(r"[^\w\s]|_", " ", answer.lower()))
    return NUMBER.sub(lambda match: NUMBERS[match[0]], " ".join(words.split()))


def squared(image: Tensor, side: int) -> Tensor:
    """Resize an image to the square that a VQA model was trained on: uint8 (3,H,W) -> uint8 (3,side,side)."""
    if tuple(image.shape[-2:]) == (side, side):
        return image
    return F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0]


def choice_loss(scores: Tensor, truth: Sequence[int], smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the rows that have a target.

    Args:
        scores: (B,A).
        truth: B class indices; -1: left out.
        smoothing: label smoothing.

    Returns:
        A scalar; 0 if every row is left out.
    """
    target = torch.tensor(truth, device=scores.device)
    loss = F.cross_entropy(scores.float(), target, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return loss / max(1, sum(t >= 0 for t in truth))
