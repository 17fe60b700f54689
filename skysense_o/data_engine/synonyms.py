"""One name for what is called by several: names that mean the same, by the text tower, and look the same, by a graph.

Alphabet: T names, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from skysense_o.data.relation_graph import RelationGraph
from skysense_o.inference.classify import text_cosines

if TYPE_CHECKING:
    from torch import nn

LOOKS_SAME = 8
"""Score of a relation graph, 1..10, from which on two names may be one."""


def synonyms(
    model: nn.Module, counts: Mapping[str, int], cosine: float, graph: RelationGraph | None = None
) -> dict[str, str]:
    """Which name each name is replaced by.

    The more frequent a name the sooner it stands for others; a name joins the most frequent one that is near enough,
    and is then no target itself, so that chains of small steps join nothing far apart.

    Args:
        model: a SkySenseO. counts: name -> how often it was given. cosine: of names' text vectors, from which on they
            are one; above 1 none are. graph: where it relates two names, they must also look alike (LOOKS_SAME).

    Returns:
        name -> name, for those that are replaced.
    """
    names = sorted(counts, key=lambda name: (-counts[name], name))
    if len(names) < 2 or cosine > 1:
        return {}
    near = text_cosines(model, names)
    visual_similarity = (
        np.ones_like(near) if graph is None else np.maximum(graph.between(names), graph.between(names).T)
    )
    allowed = (near >= cosine) & ((visual_similarity == 0) | (visual_similarity * 10 >= LOOKS_SAME))
    replaced: dict[str, str] = {}
    for i, name in enumerate(names):
        target = next((j for j in range(i) if allowed[i, j] and names[j] not in replaced), None)
        if target is not None:
            replaced[name] = names[target]
    return replaced
