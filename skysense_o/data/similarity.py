"""How alike names are: by their words, by what they look like, by where they stand together, by who confuses them.

Alphabet: T names, D embedding. Every measure is float (T,T), the more the more alike; NaN where it says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from skysense_o.data.relation_graph import HIGHEST, RelationGraph

WEIGHTS = {"looks": 0.6, "words": 0.2, "cooccurrence": 0.2}
"""Of the measures' ranks in a pair's score. Looks count most, since the scores are to say what is hardly told apart;
cooccurrence raises what stands together, for a name that is likely in the image unlabelled is a bad negative."""
CONFUSED = 2
"""Times that people renamed one into the other, from which on a pair has the highest score."""


def prototype_cosines(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(T,T) cosines between the mean features of names; NaN for those that nothing shows.

    Args:
        sums: (T,D) of features. counts: (T,) how many were summed.
    """
    mean = sums.sum(0) / max(1, counts.sum())  # what all names share says nothing about which are alike
    with np.errstate(invalid="ignore", divide="ignore"):
        prototypes = sums / counts[:, None] - mean
        prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    return prototypes @ prototypes.T


def cooccurrence(images: Iterable[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """(T,T) Jaccard index: images that show both names, of those that show either."""
    place = {name: i for i, name in enumerate(names)}
    together = np.zeros((len(names), len(names)))
    for shown in images:
        ids = sorted({place[name] for name in shown if name in place})
        together[np.ix_(ids, ids)] += 1
    alone = np.diag(together)
    either = alone[:, None] + alone[None] - together
    with np.errstate(invalid="ignore", divide="ignore"):
        return together / np.where(either > 0, either, np.nan)


def confusions(renames: Iterable[tuple[str, str]]) -> Counter:
    """{(name, name) in alphabetical order: how often one became the other}."""
    return Counter(tuple(sorted(pair)) for pair in renames if pair[0] != pair[1] and all(pair))


def combined(
    names: Sequence[str], measures: Mapping[str, np.ndarray], confused: Mapping[tuple[str, str], int]
) -> RelationGraph:
    """One graph of all measures: the weighted mean of their ranks, scored by tenths; what people confuse gets 10.

    Args:
        measures: by the names of WEIGHTS. confused: see `confusions`.
    """
    total, weight = np.zeros((len(names),) * 2), np.zeros((len(names),) * 2)
    for name, values in measures.items():
        ranked = ranks(values)
        known = np.isfinite(ranked)
        total[known] += WEIGHTS[name] * ranked[known]
        weight[known] += WEIGHTS[name]
    with np.errstate(invalid="ignore"):
        mean = total / np.where(weight > 0, weight, np.nan)
    source = " + ".join(f"{WEIGHTS[name]} {name}" for name in measures)
    graph = RelationGraph.from_similarity(names, mean, source)
    origin = np.zeros_like(graph.scores)
    for pair, count in confused.items():
        i, j = (graph.index.get(name.lower(), -1) for name in pair)
        if count >= CONFUSED and min(i, j) >= 0:
            graph.scores[[i, j], [j, i]] = HIGHEST
            origin[[i, j], [j, i]] = 1
    return RelationGraph(graph.names, graph.scores, (source, "confused by reviewers"), origin)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks among all pairs off the diagonal, 0..1, equal values alike; NaN stays."""
    from scipy.stats import rankdata

    values = np.array(values, np.float64)
    np.fill_diagonal(values, np.nan)
    known = np.isfinite(values)
    out = np.full(values.shape, np.nan)
    if known.any():
        out[known] = rankdata(values[known]) / known.sum()
    return out
