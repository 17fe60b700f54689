"""Similarity of classes, measured by their words, their image features, how often they occur together, and how often
reviewers renamed one into the other.

Shape letters: T classes, D embedding. Each measure is float (T,T); higher is more similar, NaN is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from skysense_o.data.relation_graph import HIGHEST, RelationGraph

WEIGHTS = {"looks": 0.6, "words": 0.2, "cooccurrence": 0.2}
"""Weights of the measures' ranks. Image features have the highest weight, as the score is about visual similarity.
Cooccurrence raises the score, because a class that is likely to be in the image is a bad negative."""
CONFUSED = 2
"""A pair of classes that reviewers renamed into each other at least this often gets the highest score."""


def prototype_cosines(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Cosines between the mean features of classes.

    Args:
        sums: (T,D) sums of features.
        counts: (T,) number of features in each sum.

    Returns:
        (T,T); NaN for classes without features.
    """
    mean = sums.sum(0) / max(1, counts.sum())  # mean of all features; it tells nothing about a class, so subtract it
    with np.errstate(invalid="ignore", divide="ignore"):
        prototypes = sums / counts[:, None] - mean
        prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    return prototypes @ prototypes.T


def cooccurrence(images: Iterable[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """Jaccard index (T,T): number of images with both classes / number of images with one of them or both."""
    index = {name: i for i, name in enumerate(names)}
    together = np.zeros((len(names), len(names)))
    for shown in images:
        ids = sorted({index[name] for name in shown if name in index})
        together[np.ix_(ids, ids)] += 1
    alone = np.diag(together)
    either = alone[:, None] + alone[None] - together
    with np.errstate(invalid="ignore", divide="ignore"):
        return together / np.where(either > 0, either, np.nan)


def confusions(renames: Iterable[tuple[str, str]]) -> Counter:
    """(name, other name), in alphabetical order -> number of renamings from one to the other."""
    return Counter(tuple(sorted(pair)) for pair in renames if pair[0] != pair[1] and all(pair))


def combined(
    names: Sequence[str], measures: Mapping[str, np.ndarray], confused: Mapping[tuple[str, str], int]
) -> RelationGraph:
    """Combine measures into a graph: scores are deciles of the weighted mean rank; confused pairs have score 10.

    Args:
        names: T class names.
        measures: key of WEIGHTS -> float (T,T).
        confused: see `confusions`.
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
    """Ranks over all pairs off the diagonal, scaled to 0..1; ties share a rank, NaN stays NaN."""
    from scipy.stats import rankdata

    values = np.array(values, np.float64)
    np.fill_diagonal(values, np.nan)
    known = np.isfinite(values)
    out = np.full(values.shape, np.nan)
    if known.any():
        out[known] = rankdata(values[known]) / known.sum()
    return out
