"""Words for kinds of other words: if "forest" and "tree" are both requested, a forest is "forest".

The decoder reads each phrase by itself, so in a forest both words have a high probability. The narrower one should win,
but "tree" requested alone should find the forest, too. So the wider word loses only against requested narrower words.

Shape letters: T phrases, h' w' grid of the masks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.vocabulary import Vocabulary

SMALLEST = 1e-7  # least distance of a probability to 1, so that its logit is finite


class Kinds:
    """Which words are kinds of which other words."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """
        Args:
            entries: one per concept, as in "tree|trees < vegetation": its words with bars between them, then the first
                words of the concepts that it is a kind of. The config key MODEL.KNOWN.KINDS has this form.

        Raises:
            ValueError: a concept is a kind of a concept without an entry.

        >>> Kinds(["vegetation", "tree|trees < vegetation", "forest < tree"]).wider["forest"] == {"tree", "vegetation"}
        True
        """
        parents: dict[str, list[str]] = {}
        self.concept_of: dict[str, str] = {}
        for entry in entries:
            words, _, above = entry.partition(" < ")
            name, *_ = words = words.split("|")
            parents[name] = above.split(", ") if above else []
            for word in words:
                self.concept_of.setdefault(word, name)
        for name, above in parents.items():
            missing = [parent for parent in above if parent not in parents]
            if missing:
                raise ValueError(f"MODEL.KNOWN.KINDS: {name!r} is a kind of {missing}, which have no entry: add them")
        self.wider = {name: _all_above(name, parents) for name in parents}

    def narrower(self, vocabulary: Vocabulary) -> dict[int, list[int]]:
        """Phrase -> the phrases of other classes that are kinds of it; phrases without such phrases are left out.

        >>> Kinds(["vegetation", "tree < vegetation"]).narrower(Vocabulary.parse("road,vegetation|green,Tree"))
        {1: [3]}
        """
        if not (self.wider and vocabulary.narrower_wins):
            return {}
        classes = vocabulary.phrase_to_class
        phrases_of: dict[str, list[int]] = {}
        for i, word in enumerate(word for words in vocabulary.phrases for word in words):
            if word.lower() in self.concept_of:
                phrases_of.setdefault(self.concept_of[word.lower()], []).append(i)
        pairs: dict[int, list[int]] = {}
        for concept, phrases in phrases_of.items():
            for other in self.wider[concept] & phrases_of.keys():
                for j in phrases_of[other]:
                    kinds = [i for i in phrases if classes[i] != classes[j]]
                    if kinds:
                        pairs.setdefault(j, []).extend(kinds)
        return pairs

    def narrow(self, logits: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Let narrower words win: the probability of a wider word becomes p (1 - q), q the largest of its kinds.

        Args:
            logits: (T,h',w'); the logits of wider words are changed in place, as thousands of phrases may be large.
            vocabulary: with T phrases.

        Returns:
            `logits`.
        """
        rows = {}
        for wide, kinds in self.narrower(vocabulary).items():
            largest = logits[kinds].float().amax(0)
            log_p = F.logsigmoid(logits[wide].float()) + F.logsigmoid(-largest)
            rows[wide] = log_p - torch.log(-torch.expm1(log_p.clamp(max=-SMALLEST)))
        for wide, row in rows.items():  # only now, as a word may be wider than one word and narrower than another
            logits[wide] = row
        return logits


def _all_above(name: str, parents: dict[str, list[str]]) -> set[str]:
    found, waiting = set(), list(parents[name])
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting += parents[parent]
    return found
