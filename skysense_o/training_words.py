"""Words outside of a model's training: they are named, and read with the help of the most similar training words.

Weights name their training classes in `MODEL.KNOWN.CLASSES`.
Shape letters: B images, T phrases, P templates, D embedding, N training words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
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
NEAREST = 16
"""Number of training words from which the vector of another word is blended."""
TEMPERATURE = 0.1
"""Of the softmax over their cosines."""
LONG = 5
"""Letters of a word in which one letter may be a slip; many shorter words are one letter away from other real words."""


class TrainingWords:
    """The words a model was trained on."""

    def __init__(
        self, tower: Tower, classes: Sequence[str], text_bank: TextBank | None = None, share: float = 0.0
    ) -> None:
        """
        Args:
            tower: its text encoder compares words.
            classes: training classes, each with its synonyms separated by bars; empty if unknown.
            text_bank: the model's text bank, so that a word is encoded once; None: a new text bank.
            share: 0..1, how much of the text vector of another word comes from training words, see `blend`.

        Raises:
            ValueError: the share is out of range.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"MODEL.KNOWN.BLEND {share} is out of range: 0 to 1")
        self.tower, self.classes, self.share = tower, [entry.split("|") for entry in classes], share
        self.text_bank = text_bank or TextBank()
        self._trained = {_singular(word): word for words in self.classes for word in words}
        self._blended: dict[tuple[str, ...], Tensor] = {}  # phrase and templates -> (P,D)
        self._blended_for = ""  # hash of the weights for which they were computed

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
        each = self._cosines([phrase for phrases in unknown.values() for phrase in phrases])
        parts = each.split([len(phrases) for phrases in unknown.values()])
        cosines = torch.stack([part.amax(dim=0) for part in parts])
        nearest = cosines.argmax(dim=1).tolist()
        return found | {name: (self._compared[k], float(row[k])) for name, row, k in zip(unknown, cosines, nearest)}

    @torch.no_grad()
    def blend(self, text: Tensor, vocabularies: Sequence[Vocabulary], templates: Sequence[str]) -> Tensor:
        """Move the vectors of words outside of the training towards those of the most similar training words.

        A model learns to find what its training words mean, but knows other words only by their similarity. "Dunes" is
        similar to "sand" and, less so, to many other words; the blend keeps to the most similar ones. Two kinds of
        phrases keep their vectors: those that are FAR from every training word, since nothing says which masks they
        should have, and those with a training word in them, since "bus stop" would become "bus".

        Args:
            text: (B,T,P,D) unit vectors of a `TextBank`.
            vocabularies: the B vocabularies that were encoded.
            templates: the P sentences with which they were encoded.

        Returns:
            (B,T,P,D) unit vectors: a new tensor, or `text` itself if there is nothing to change.
        """
        if not (self.share and self.classes):
            return text
        found = [
            (b, t, phrase)
            for b, vocabulary in enumerate(vocabularies)
            for t, phrase in enumerate(phrase for phrases in vocabulary.phrases for phrase in phrases)
            if phrase not in vocabulary.examples and not self._keeps(phrase)
        ]
        if not found:
            return text
        rows, columns, phrases = zip(*found)
        changed = text.clone()
        changed[list(rows), list(columns)] = self._blended_vectors(phrases, text[list(rows), list(columns)], templates)
        return changed

    def _keeps(self, phrase: str) -> bool:
        """Whether a phrase is a training word or has one in it."""
        return any(_singular(part) in self._trained for part in (phrase, *re.split(r"[\s-]+", phrase)))

    def _blended_vectors(self, phrases: Sequence[str], own: Tensor, templates: Sequence[str]) -> Tensor:
        """The blended vectors (N,P,D) of N phrases with these own vectors; computed once per weights of the tower."""
        weights = self.text_bank.weights_of(self.tower)
        if weights != self._blended_for:
            self._blended, self._blended_for = {}, weights
        table, missing = self._blended, {}
        for phrase, vectors in zip(phrases, own):
            if (phrase, *templates) not in table:
                missing[phrase] = vectors.float()
        for phrase, cosines in zip(missing, self._cosines(list(missing)) if missing else ()):
            best, which = cosines.topk(min(NEAREST, len(cosines)))
            near = self._encode([self._compared[i] for i in which.tolist()], templates).float()
            mean = F.normalize((near * (best / TEMPERATURE).softmax(0)[:, None, None]).sum(0), dim=-1)
            share = self.share if best[0] >= FAR else 0.0
            table[(phrase, *templates)] = F.normalize((1 - share) * missing[phrase] + share * mean, dim=-1)
        return torch.stack([table[(phrase, *templates)] for phrase in phrases]).to(own)

    def _cosines(self, words: Sequence[str]) -> Tensor:
        """(words, N), in float32 also where autocast is on, so that FAR means the same everywhere."""
        with torch.autocast(self.tower.pixel_mean.device.type, enabled=False):
            return self._encode(words)[:, 0].float() @ self._encode(self._compared)[:, 0].float().T

    def _spelled(self, phrase: str) -> str | None:
        """The training word that a phrase is a slip of; None if there is none."""
        asked = _singular(phrase)
        slips = (word for known, word in self._trained.items() if word not in NOTHING and _is_slip(asked, known))
        return next(slips, None)

    @cached_property
    def _compared(self) -> list[str]:
        words = [word for words in self.classes for word in words[: 1 + SYNONYMS] if word not in NOTHING]
        return list(dict.fromkeys(words))

    @torch.no_grad()
    def _encode(self, words: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """(N,P,D) unit vectors."""
        asked = Vocabulary(tuple(words), tuple((word,) for word in words), (False,) * len(words))
        text, _ = self.text_bank(self.tower, [asked], templates)
        return text[0]


def describe_unfamiliar(words: dict[str, tuple[str, float | None]]) -> list[str]:
    """One sentence per class of `TrainingWords.unfamiliar`.

    >>> words = {"forst": ("forest", None), "solar panel": ("rooftop", 0.37), "freighter": ("ships", 0.8)}
    >>> print(*describe_unfamiliar(words), sep="\\n")
    "forst" is not a word of the training: did you mean "forest"?
    "solar panel" is far from every English word of the training: its mask may mean nothing
    "freighter" is not a word of the training; the model takes it for something like "ships" (0.80)
    """
    return [
        f'"{name}" is not a word of the training: did you mean "{nearest}"?'
        if cosine is None
        else f'"{name}" is far from every English word of the training: its mask may mean nothing'
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
