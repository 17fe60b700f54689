"""Which words go with a training image: its own classes, each by one of its names, and others beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from skysense_o.data.classes import ClassTable
from skysense_o.data.relation_graph import RelationGraph, load_graph
from skysense_o.vocabulary import Vocabulary


@dataclass(frozen=True)
class TextSampler:
    """Samples a vocabulary that begins with the image's own names, in their order: labels stay as they are.

    synonyms: call a class by any of its words with equal chance, else by its name. pool: unrelated names. count: how
    many names are added. batch: how many names there are in all (0: `count` decides); an image with more of its own
    keeps a random part of them. graph: file of a relation graph, from which the added names are drawn then.
    thresholds: lowest and highest score of a negative, and of a name too near to be one, as the published sampler has
    them; its own code drew by [1, 3, 9, 10] whatever its config said.
    """

    synonyms: bool
    pool: tuple[str, ...]
    count: int
    batch: int = 0
    graph: str = ""
    thresholds: tuple[int, int, int, int] = field(default=(1, 3, 9, 10))

    def __post_init__(self) -> None:
        low, high, near, nearest = self.thresholds
        if not (1 <= low <= high <= 10 and 1 <= near <= nearest <= 10):
            raise ValueError(
                f"INPUT.SAMPLING_HYPER {list(self.thresholds)}: lowest and highest score of a negative, then of a"
                " positive; each from 1 to 10, the lower one first"
            )

    def __call__(self, own: ClassTable | tuple[str, ...], graph: str = "") -> tuple[Vocabulary, list[int] | None]:
        """Uses NumPy's global generator, which the loader seeds for each sample; nothing depends on hash order.

        Args:
            own: the data set's classes, or the classes of one image. graph: of the data set, before the sampler's own.

        Returns:
            The vocabulary, and, where not all own names fit, which of them it begins with (None: all).
        """
        table = own if isinstance(own, ClassTable) else None
        classes = list(table.classes if table else own)
        words = [self._called(table, place) if table else name for place, name in enumerate(classes)]
        kept = None
        if self.batch and len(words) > self.batch:
            kept = sorted(np.random.choice(len(words), self.batch, replace=False).tolist())
            words = [words[place] for place in kept]
        wanted = self.batch - len(words) if self.batch else self.count
        path = graph or self.graph
        pool = self._related(load_graph(path), own, classes) if path else without_overlap(self.pool, own)
        drawn = np.random.choice(len(pool), min(wanted, len(pool)), replace=False) if pool and wanted > 0 else ()
        more = [pool[i] for i in drawn]
        return Vocabulary.of([(word,) for word in (*words, *more)]), kept

    def _called(self, table: ClassTable, place: int) -> str:
        pool = (table.classes[place], *table.synonyms[place]) if self.synonyms else (table.classes[place],)
        return pool[np.random.randint(len(pool))]

    def _related(
        self, graph: RelationGraph, own: ClassTable | tuple[str, ...], classes: Sequence[str]
    ) -> tuple[str, ...]:
        """Negatives by the graph; any of its names but the near ones where it gives none."""
        low, high, near, nearest = self.thresholds
        pool = without_overlap(tuple(graph.names[i] for i in graph.negatives(classes, low, high)), own)
        if pool:
            return pool
        too_near = set(graph.positives(classes, near, nearest).tolist())
        return without_overlap(tuple(name for i, name in enumerate(graph.names) if i not in too_near), own)


@lru_cache(1024)
def without_overlap(pool: tuple[str, ...], own: ClassTable | tuple[str, ...]) -> tuple[str, ...]:
    """The names of the pool that no class or synonym of `own` is called, upper and lower case not told apart."""
    words = (*own.classes, *(w for s in own.synonyms for w in s)) if isinstance(own, ClassTable) else own
    taken = {word.lower() for word in words}
    return tuple(name for name in pool if name.lower() not in taken)
