"""What every VQA model can do, and when two answers are the same."""

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
    """The interface of the embedded VQA model and of those with a language model."""

    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """One answer for each image, uint8 (3,H,W) RGB of any size, and its question."""


def normalise(answer: str) -> str:
    """Lower case, without articles and punctuation, single spaces, numbers up to 99 as digits; else as it was said.

    >>> normalise("The Twenty-two boats.")
    '22 boats'
    """
    words = ARTICLES.sub(" ", re.sub(r"[^\w\s]|_", " ", answer.lower()))
    return NUMBER.sub(lambda match: NUMBERS[match[0]], " ".join(words.split()))


def squared(image: Tensor, side: int) -> Tensor:
    """uint8 (3,H,W) -> uint8 (3,side,side): a VQA model sees every image at the size that it was trained at."""
    if tuple(image.shape[-2:]) == (side, side):
        return image
    return F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0]


def choice_loss(scores: Tensor, truth: Sequence[int], smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of (B,A) over those whose truth is not -1; 0 where there is none."""
    target = torch.tensor(truth, device=scores.device)
    loss = F.cross_entropy(scores.float(), target, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return loss / max(1, sum(t >= 0 for t in truth))
