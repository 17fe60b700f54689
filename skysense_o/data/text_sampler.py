"""Choose the words of a training sample: the classes of the image, and negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from skysense_o.data.classes import ClassTable
from skysense_o.data.relation_graph import RelationGraph, check_thresholds, load_graph
from skysense_o.vocabulary import Vocabulary


@dataclass(frozen=True)
class TextSampler:
    """Samples a vocabulary that starts with the classes of the image, in the order of their ids.

    Args:
        synonyms: draw a word for each class from its name and synonyms, with equal probability; else use its name.
        pool: class names to draw negatives from.
        count: number of negatives.
        batch: number of classes and negatives together, in place of `count`; 0: use `count`. If the image has more
            than `batch` classes, a random selection of them is kept.
        graph: file of a relation graph to draw negatives from, in place of `pool`.
        thresholds: four scores of the relation graph: lowest and highest score of a negative, and lowest and highest
            score of a class that is too similar to be a negative. The published code always uses [1, 3, 9, 10] and
            ignores its config.

    Raises:
        ValueError: the thresholds are out of order.
    """

    synonyms: bool
    pool: tuple[str, ...]
    count: int
    batch: int = 0
    graph: str = ""
    thresholds: tuple[int, int, int, int] = field(default=(1, 3, 9, 10))

    def __post_init__(self) -> None:
        check_thresholds(self.thresholds)

    def __call__(self, own: ClassTable | tuple[str, ...], graph: str = "") -> tuple[Vocabulary, list[int] | None]:
        """Sample a vocabulary with NumPy's global generator, which the loader seeds for each sample.

        Args:
            own: the classes of the data set, or of one image.
            graph: file of the data set's relation graph; it replaces the sampler's own graph.

        Returns:
            the vocabulary, and the indices of the classes of `own` with which it starts (None: all).
        """
        table = own if isinstance(own, ClassTable) else None
        classes = list(table.classes if table else own)
        words = [self._word(table, index) if table else name for index, name in enumerate(classes)]
        kept = None
        if self.batch and len(words) > self.batch:
            kept = sorted(np.random.choice(len(words), self.batch, replace=False).tolist())
            words = [words[index] for index in kept]
        count = self.batch - len(words) if self.batch else self.count
        path = graph or self.graph
        pool = self._related(load_graph(path), own, classes) if path else without_overlap(self.pool, own)
        drawn = np.random.choice(len(pool), min(count, len(pool)), replace=False) if pool and count > 0 else ()
        more = [pool[i] for i in drawn]
        return Vocabulary.of([(word,) for word in (*words, *more)]), kept

    def _word(self, table: ClassTable, index: int) -> str:
        """A word for a class of the table."""
        pool = (table.classes[index], *table.synonyms[index]) if self.synonyms else (table.classes[index],)
        return pool[np.random.randint(len(pool))]

    def _related(
        self, graph: RelationGraph, own: ClassTable | tuple[str, ...], classes: Sequence[str]
    ) -> tuple[str, ...]:
        """Negatives of these classes in the graph; if there are none, all names that are not too similar to a class."""
        low, high, near, nearest = self.thresholds
        pool = without_overlap(tuple(graph.names[i] for i in graph.negatives(classes, low, high)), own)
        if pool:
            return pool
        too_near = set(graph.positives(classes, near, nearest).tolist())
        return without_overlap(tuple(name for i, name in enumerate(graph.names) if i not in too_near), own)


@lru_cache(1024)
def without_overlap(pool: tuple[str, ...], own: ClassTable | tuple[str, ...]) -> tuple[str, ...]:
    """The names of the pool that are not a class or synonym of `own`; upper and lower case count as equal."""
    words = (*own.classes, *(w for s in own.synonyms for w in s)) if isinstance(own, ClassTable) else own
    taken = {word.lower() for word in words}
    return tuple(name for name in pool if name.lower() not in taken)
