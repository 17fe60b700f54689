"""Visual similarity of classes: a directed graph with scores from 1 (nothing in common) to 10 (nearly the same).

Sky-SA's graph is a text file with one relation per line, whose fields are separated by a literal placeholder:

    ("relationship"{tuple_delimiter}"lake"{tuple_delimiter}"pond"{tuple_delimiter}9{tuple_delimiter}"both are ...")

Shape letters: T class names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from skysense_o.text_files import checked, parse_json, read_text, take
from skysense_o.whole_files import whole, write_text

DELIMITER = "{tuple_delimiter}"
LOWEST, HIGHEST = 1, 10


def check_thresholds(thresholds: Sequence[int]) -> None:
    """Check four scores: lowest and highest score of a negative, and lowest and highest score of a class that is too
    similar to be a negative.

    Raises:
        ValueError: the thresholds are out of order.
    """
    low, high, near, nearest = thresholds
    if not (LOWEST <= low <= high <= HIGHEST and LOWEST <= near <= nearest <= HIGHEST):
        raise ValueError(
            f"INPUT.SAMPLING_HYPER {list(thresholds)}: lowest and highest score of a negative, then lowest"
            " and highest score of a positive, must be from 1 to 10, and lowest must not be above highest"
        )


@dataclass(frozen=True, eq=False)
class RelationGraph:
    """Similarity scores between T classes.

    Args:
        names: T class names.
        scores: uint8 (T,T), the score of the relation from row to column, 1..10; 0 for no relation.
        sources: descriptions of where scores come from.
        origin: uint8 (T,T), index into `sources` of each score; None: the first source.

    Raises:
        ValueError: scores have another shape or are above 10.

    >>> graph = RelationGraph.of_edges(["lake", "pond", "road"], [(0, 1, 9, 0), (0, 2, 2, 0)])
    >>> graph.between(["Lake", "pond"]).round(1).tolist() == [[1.0, np.float32(0.9).item()], [0.0, 1.0]]
    True
    >>> [graph.names[i] for i in graph.negatives(["lake"], 1, 3)]
    ['road']
    """

    names: tuple[str, ...]
    scores: np.ndarray
    sources: tuple[str, ...] = ("unknown",)
    origin: np.ndarray | None = field(default=None)

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.names),) * 2:
            raise ValueError(
                f"scores are {self.scores.shape} for {len(self.names)} names: the shape must be (names, names)"
            )
        if self.scores.max(initial=0) > HIGHEST:
            raise ValueError(f"scores go up to {self.scores.max()}: they must be {LOWEST} to {HIGHEST}, or 0 for none")

    @cached_property
    def index(self) -> dict[str, int]:
        """Name in lower case -> its index."""
        return {name.lower(): index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def indices(self, names: Iterable[str]) -> np.ndarray:
        """Indices, int64, of the names that the graph has; upper and lower case count as equal."""
        return np.array([self.index[n.lower()] for n in names if n.lower() in self.index], np.int64)

    def symmetric(self) -> RelationGraph:
        """A graph in which both directions of a pair have the higher one of their two scores."""
        turned = self.scores < self.scores.T
        scores = np.where(turned, self.scores.T, self.scores)
        origin = None if self.origin is None else np.where(turned, self.origin.T, self.origin)
        return RelationGraph(self.names, scores, self.sources, origin)

    def similarity(self, symmetric: bool = False) -> np.ndarray:
        """float32 (T,T), score / 10; 0 for no relation, 1 on the diagonal."""
        scores = self.symmetric().scores if symmetric else self.scores
        values = scores.astype(np.float32) / HIGHEST
        np.fill_diagonal(values, 1.0)
        return values

    def between(self, names: Sequence[str]) -> np.ndarray:
        """Similarity of C names, float32 (C,C): score / 10; 0 without a relation or for unknown names; 1 to itself."""
        index = np.array([self.index.get(name.lower(), -1) for name in names])
        values = self.scores[np.ix_(index, index)].astype(np.float32) / HIGHEST
        values[index < 0] = values[:, index < 0] = 0.0
        np.fill_diagonal(values, 1.0)
        return values

    def negatives(self, names: Iterable[str], low: int, high: int) -> np.ndarray:
        """Indices of the classes to which each of `names` has a score from `low` to `high`, as in the published code.

        Names without any relation are ignored. If none of `names` has a relation, the result is empty.
        """
        own = self.indices(names)
        own_rows = own[self.scores[own].any(axis=1)] if len(own) else own
        if not len(own_rows):
            return own_rows
        rows = self.scores[own_rows]
        fits = ((rows >= low) & (rows <= high)).all(axis=0)
        fits[own] = False
        return np.flatnonzero(fits)

    def positives(self, names: Iterable[str], low: int, high: int) -> np.ndarray:
        """Indices of the classes, except `names`, to which any of `names` has a score from `low` to `high`."""
        own = self.indices(names)
        rows = self.scores[own]
        fits = ((rows >= max(low, LOWEST)) & (rows <= high)).any(axis=0)
        fits[own] = False
        return np.flatnonzero(fits)

    def save(self, path: str | Path) -> None:
        """Write JSON: {"names": [T], "sources": [...], "edges": [[from, to, score, source], ...]} with indices."""
        rows, columns = np.nonzero(self.scores)
        origin = np.zeros_like(self.scores) if self.origin is None else self.origin
        edges = np.stack([rows, columns, self.scores[rows, columns], origin[rows, columns]], axis=1).tolist()
        body = {"names": list(self.names), "sources": list(self.sources), "edges": edges}
        write_text(Path(path), json.dumps(body, ensure_ascii=False, separators=(",", ":")))

    def save_as_skysa(self, path: str | Path) -> None:
        """Write Sky-SA's text format, with the source of a score as its reason. `load_graph` reads it."""
        rows, columns = np.nonzero(self.scores)
        origin = np.zeros_like(self.scores) if self.origin is None else self.origin
        with whole(Path(path)) as part, open(part, "w", encoding="utf-8") as file:
            for i, j in zip(rows.tolist(), columns.tolist()):
                fields = (f'"{self.names[i]}"', f'"{self.names[j]}"', str(self.scores[i, j]))
                line = ('("relationship"', *fields, f'"{self.sources[origin[i, j]]}")')
                file.write(DELIMITER.join(line) + "\n")

    @classmethod
    def of_edges(cls, names: Sequence[str], edges: np.ndarray, sources: Sequence[str] = ("unknown",)) -> RelationGraph:
        """Build a graph from edges, integers (E,4): from, to, score, source.

        Raises:
            ValueError: a score is outside of 1..10.
        """
        scores = np.zeros((len(names), len(names)), np.uint8)
        origin = np.zeros_like(scores)
        edges = np.asarray(edges, np.int64).reshape(-1, 4)
        if len(edges) and not ((edges[:, 2] >= LOWEST) & (edges[:, 2] <= HIGHEST)).all():
            raise ValueError(f"scores must be {LOWEST} to {HIGHEST}; found {edges[:, 2].min()} to {edges[:, 2].max()}")
        scores[edges[:, 0], edges[:, 1]] = edges[:, 2]
        origin[edges[:, 0], edges[:, 1]] = edges[:, 3]
        return cls(tuple(names), scores, tuple(sources), origin)

    @classmethod
    def from_similarity(cls, names: Sequence[str], values: np.ndarray, source: str) -> RelationGraph:
        """Build a graph from any similarity measure.

        Scores are deciles over all pairs of different classes. So whatever the scale of the measure, the 30 % of pairs
        with the lowest similarity get the scores 1 to 3.

        Args:
            names: T class names.
            values: float (T,T), higher is more similar; NaN for no relation.
            source: description of the measure.
        """
        values = np.array(values, np.float64)
        np.fill_diagonal(values, np.nan)
        known = np.isfinite(values)
        scores = np.zeros(values.shape, np.uint8)
        if known.any():
            edges = np.quantile(values[known], np.arange(1, HIGHEST) / HIGHEST)
            scores[known] = np.searchsorted(edges, values[known], side="right") + 1
        return cls(tuple(names), scores, (source,), np.zeros_like(scores))


def load_graph(path: str | Path) -> RelationGraph:
    """Load a graph from our JSON or from Sky-SA's text; see `load_graph_with_report`."""
    return load_graph_with_report(str(path))[0]


@lru_cache
def load_graph_with_report(path: str) -> tuple[RelationGraph, dict[str, int]]:
    """Load a graph and count the defects of its file.

    Returns:
        the graph, and defect -> number of lines.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has no relation; the message shows the format of a line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no relation graph at {path!r}: tools/build_graph.py makes one")
    text = read_text(path)
    if text.lstrip().startswith("{"):
        return _saved_graph(parse_json(text, path), path), {}
    return parse_relations(text.split("\n"), path)


def _saved_graph(body: dict, path: str) -> RelationGraph:
    """Make a graph from `body`, the content of a JSON file that `RelationGraph.save` wrote."""
    names = [checked(name, str, f"{path}: a name") for name in take(body, "names", list, path)]
    sources = [checked(one, str, f"{path}: a source") for one in take(body, "sources", list, path, ["unknown"])]
    edges = take(body, "edges", list, path)
    try:
        edges = np.array(edges or np.zeros((0, 4)), np.float64)
    except (TypeError, ValueError, OverflowError):  # entries of unequal lengths, or that are not numbers
        edges = np.zeros(1)
    low, high = [0, 0, LOWEST, 0], [len(names) - 1, len(names) - 1, HIGHEST, len(sources) - 1]
    if edges.shape[1:] != (4,) or not ((edges >= low) & (edges <= high) & (edges % 1 == 0)).all():
        raise ValueError(
            f"{path}: an entry of 'edges' is not [from, to, score, source]: two of {len(names)} names, a score from"
            f" {LOWEST} to {HIGHEST}, and one of {len(sources)} sources, as whole numbers from 0"
        )
    return RelationGraph.of_edges(names, edges, sources)


def parse_relations(lines: Iterable[str], path: str) -> tuple[RelationGraph, dict[str, int]]:
    """Parse Sky-SA's text -> graph, and defect -> number of lines. If a pair is repeated, the last line counts."""
    odd: Counter = Counter()
    names: dict[str, int] = {}
    spelled: list[str] = []
    scores: dict[tuple[int, int], int] = {}
    for line in lines:
        relation = parse_relation(line, odd) if line.strip() else None
        if relation is None:
            continue
        pair = []
        for name in relation[:2]:
            if name.lower() not in names:
                names[name.lower()] = len(spelled)
                spelled.append(name)
            pair.append(names[name.lower()])
        odd["repeated pairs (the last counts)"] += (pair[0], pair[1]) in scores
        scores[pair[0], pair[1]] = relation[2]
    if not scores:
        raise ValueError(
            f'{path} holds no relation: a line must be ("relationship"{DELIMITER}"lake"{DELIMITER}"pond"{DELIMITER}9'
            f"{DELIMITER}...), fields split by the literal {DELIMITER}; found {dict(odd)}"
        )
    edges = np.array([(i, j, score, 0) for (i, j), score in scores.items()])
    return RelationGraph.of_edges(spelled, edges, [Path(path).name]), {k: n for k, n in odd.items() if n}


def parse_relation(line: str, odd: Counter) -> tuple[str, str, int] | None:
    """Parse a line -> (from, to, score), or None if it cannot be used; defects are counted in `odd`."""
    fields = [part.strip() for part in line.strip().split(DELIMITER)]
    if len(fields) < 4:
        odd[f"lines without {DELIMITER}, or with too few fields"] += 1
        return None
    if fields[0].strip('"( ').lower() != "relationship":
        odd["lines that are not a relation"] += 1
        return None
    source, target = (" ".join(part.strip('"').split()) for part in fields[1:3])
    try:
        score = int(fields[3])
    except ValueError:
        try:
            score = int(fields[3].strip('") '))
            odd["scores in quotes or brackets, corrected"] += 1
        except ValueError:
            odd["scores that are not integers"] += 1
            return None
    if not LOWEST <= score <= HIGHEST:
        odd[f"scores not from {LOWEST} to {HIGHEST}"] += 1
        return None
    if not source or not target or source.lower() == target.lower():
        odd["relations of a class to itself or to an empty name"] += 1
        return None
    return source, target, score
