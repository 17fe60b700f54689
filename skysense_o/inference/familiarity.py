"""Which requested words a model was not trained on. Weights name their training classes in `MODEL.KNOWN.CLASSES`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from skysense_o.modeling import Tower
from skysense_o.text_bank import TextBank
from skysense_o.vocabulary import Vocabulary

SYNONYMS = 4
"""Number of synonyms per training class with which requested words are compared."""
FAR = 0.5
"""Cosine of text embeddings below which a word is far from every training word. Of 230 held-out words for trained
classes 50 % lie above it, and of 120 words for indoor things 10 % do. So the cosine is a hint, not a proof."""
NOTHING = {"other", "background", "clutter", "none", "unknown", "void"}
"""Training words that name no thing, so that nobody is told that a word is like them."""
LONG = 5
"""Letters of a word in which one letter may be a slip; many shorter words are one letter away from other real words."""


class TrainingWords:
    """The words a model was trained on."""

    def __init__(self, tower: Tower, classes: Sequence[str], text_bank: TextBank | None = None) -> None:
        """
        Args:
            tower: its text encoder compares words.
            classes: training classes, each with its synonyms separated by bars; empty if unknown.
            text_bank: the model's text bank, so that a word is encoded once; None: a new text bank.
        """
        self.tower, self.classes = tower, [entry.split("|") for entry in classes]
        self.text_bank = text_bank or TextBank()
        self._trained = {_singular(word): word for words in self.classes for word in words}

    def unfamiliar(self, vocabulary: Vocabulary) -> dict[str, tuple[str, float | None]]:
        """Requested classes without a phrase from the training, each with the nearest training word.

        Background words and example regions are not checked. The result is empty if the training classes are unknown.

        Returns:
            Class -> a training word, and the cosine of their meanings; None instead of the cosine if the class is
            spelled like the training word but for one slip.
        """
        if not self.classes:
            return {}
        rows = zip(vocabulary.classes, vocabulary.phrases, vocabulary.background)
        unknown = {
            name: phrases
            for name, phrases, background in rows
            if not (background or name in vocabulary.examples or any(_singular(p) in self._trained for p in phrases))
        }
        slips = {name: word for name, phrases in unknown.items() for word in map(self._spelled, phrases) if word}
        found = {name: (word, None) for name, word in slips.items()}
        unknown = {name: phrases for name, phrases in unknown.items() if name not in found}
        if not unknown:
            return found
        vectors = self._encode([phrase for phrases in unknown.values() for phrase in phrases])
        parts = (vectors @ self._vectors.T).split([len(phrases) for phrases in unknown.values()])
        cosines = torch.stack([part.amax(dim=0) for part in parts])
        nearest = cosines.argmax(dim=1).tolist()
        return found | {name: (self._compared[k], float(row[k])) for name, row, k in zip(unknown, cosines, nearest)}

    def _spelled(self, phrase: str) -> str | None:
        """The training word that a phrase is a slip of; None if there is none."""
        asked = _singular(phrase)
        slips = (word for known, word in self._trained.items() if word not in NOTHING and _is_slip(asked, known))
        return next(slips, None)

    @cached_property
    def _compared(self) -> list[str]:
        return [word for words in self.classes for word in words[: 1 + SYNONYMS] if word not in NOTHING]

    @cached_property
    def _vectors(self) -> Tensor:
        return self._encode(self._compared)

    @torch.no_grad()
    def _encode(self, words: Sequence[str]) -> Tensor:
        asked = Vocabulary(tuple(words), tuple((word,) for word in words), (False,) * len(words))
        text, _ = self.text_bank(self.tower, [asked], ("{}",))
        return text[0, :, 0]


def describe_unfamiliar(words: dict[str, tuple[str, float | None]]) -> list[str]:
    """One sentence per class of `TrainingWords.unfamiliar`.

    >>> words = {"forst": ("forest", None), "solar panel": ("rooftop", 0.37), "freighter": ("ships", 0.8)}
    >>> print(*describe_unfamiliar(words), sep="\\n")
    "forst" is not a word of the training: did you mean "forest"?
    "solar panel" is far from every training word (nearest: "rooftop", 0.37): its mask may mean nothing
    "freighter" is not a word of the training; the model takes it for something like "ships" (0.80)
    """
    return [
        f'"{name}" is not a word of the training: did you mean "{nearest}"?'
        if cosine is None
        else f'"{name}" is far from every training word (nearest: "{nearest}", {cosine:.2f}): its mask may mean nothing'
        if cosine < FAR
        else f'"{name}" is not a word of the training; the model takes it for something like "{nearest}" ({cosine:.2f})'
        for name, (nearest, cosine) in words.items()
    ]


def _is_slip(a: str, b: str) -> bool:
    """Whether one letter was dropped, added or changed between two words, or two neighbours were swapped.

    >>> [_is_slip(word, "forest") for word in ("forst", "foorest", "forast", "froest", "fort", "forest")]
    [True, True, True, True, False, False]
    """
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    p, q = a[same:], b[same:]
    swapped = len(p) > 1 and p[:2] == q[1::-1] and p[2:] == q[2:]
    one_letter = a != b and (p[1:] in (q, q[1:]) or p == q[1:])
    return swapped or (one_letter and max(len(a), len(b)) >= LONG)


def _singular(word: str) -> str:
    word = word.lower()
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
