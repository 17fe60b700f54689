"""Merge free-text names that are synonyms: their text embeddings are similar, and if a relation graph is given, its
score of the two names is high."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from skysense_o.data.relation_graph import RelationGraph
from skysense_o.inference.classify import text_cosines

if TYPE_CHECKING:
    from torch import nn

MIN_SCORE = 8
"""Lowest score in a relation graph, 1..10, at which two names may be merged."""


def synonyms(
    model: nn.Module, counts: Mapping[str, int], cosine: float, graph: RelationGraph | None = None
) -> dict[str, str]:
    """Decide which names are replaced by a more frequent synonym.

    A name is replaced by the most frequent name that is similar enough to it. A name that is replaced does not replace
    other names, so a chain of names in which each is similar to the next is not merged into one name.

    Args:
        model: a SkySenseO; its text tower embeds the names.
        counts: name -> number of regions that have it.
        cosine: smallest cosine of the text embeddings of synonyms; with a value above 1, no names are merged.
        graph: relation graph. If it has a score for two names, they are only merged if it is at least MIN_SCORE.

    Returns:
        name -> its replacement, for the names that are replaced.
    """
    names = sorted(counts, key=lambda name: (-counts[name], name))
    if len(names) < 2 or cosine > 1:
        return {}
    cosines = text_cosines(model, names)
    visual_similarity = (
        np.ones_like(cosines) if graph is None else np.maximum(graph.between(names), graph.between(names).T)
    )
    allowed = (cosines >= cosine) & ((visual_similarity == 0) | (visual_similarity * 10 >= MIN_SCORE))
    replaced: dict[str, str] = {}
    for i, name in enumerate(names):
        target = next((j for j in range(i) if allowed[i, j] and names[j] not in replaced), None)
        if target is not None:
            replaced[name] = names[target]
    return replaced
