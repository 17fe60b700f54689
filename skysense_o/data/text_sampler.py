"""Which words go with a training picture: each class by one of its names, and unrelated names beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skysense_o.data.classes import ClassTable
from skysense_o.vocabulary import Vocabulary


@dataclass(frozen=True)
class TextSampler:
    """Samples a vocabulary whose first C names stand for the C classes, in their order: labels stay as they are.

    synonyms: call a class by any of its words with equal chance, else by its name. distractors: pool of unrelated
    names, `count` of which are added.
    """

    synonyms: bool
    distractors: tuple[str, ...]
    count: int

    def __call__(self, table: ClassTable) -> Vocabulary:
        """Uses NumPy's global generator, which the loader seeds for each sample."""
        words = []
        for name, synonyms in zip(table.names, table.synonyms):
            pool = (name, *synonyms) if self.synonyms else (name,)
            words.append(pool[np.random.randint(len(pool))])
        taken = {word for name, synonyms in zip(table.names, table.synonyms) for word in (name, *synonyms)}
        free = [word for word in self.distractors if word not in taken]
        chosen = np.random.choice(len(free), min(self.count, len(free)), replace=False) if self.count else ()
        return Vocabulary.of([(word,) for word in words] + [(free[i],) for i in chosen])
