"""How alike things look: a directed graph of names with scores from 1 (nothing in common) to 10 (hardly told apart).

Sky-SA's comes as text, one relation a line, its fields split by a literal placeholder:

    ("relationship"{tuple_delimiter}"lake"{tuple_delimiter}"pond"{tuple_delimiter}9{tuple_delimiter}"both are ...")

Alphabet: T names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from skysense_o.text_files import read_text

DELIMITER = "{tuple_delimiter}"
LOWEST, HIGHEST = 1, 10


@dataclass(frozen=True, eq=False)
class RelationGraph:
    """Scores between T names.

    scores: uint8 (T,T), row: from, column: to; 0 where there is no relation. sources: where scores come from, and
    origin: uint8 (T,T), which of them each one comes from.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    sources: tuple[str, ...] = ("unknown",)
    origin: np.ndarray | None = field(default=None)

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.names),) * 2:
            raise ValueError(
                f"scores are {self.scores.shape}, names {len(self.names)}: a square of that side is needed"
            )
        if self.scores.max(initial=0) > HIGHEST:
            raise ValueError(f"scores go up to {self.scores.max()}: permitted are {LOWEST} to {HIGHEST}, 0 for none")

    @cached_property
    def index(self) -> dict[str, int]:
        """Name in lower case -> its place."""
        return {name.lower(): place for place, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def places(self, names: Iterable[str]) -> np.ndarray:
        """Places of those names that are in the graph, whatever their case."""
        return np.array([self.index[n.lower()] for n in names if n.lower() in self.index], np.int64)

    def symmetric(self) -> RelationGraph:
        """The higher of the two directions, both ways."""
        turned = self.scores < self.scores.T
        scores = np.where(turned, self.scores.T, self.scores)
        origin = None if self.origin is None else np.where(turned, self.origin.T, self.origin)
        return RelationGraph(self.names, scores, self.sources, origin)

    def similarity(self, symmetric: bool = False) -> np.ndarray:
        """float32 (T,T), score / 10; 0 where there is no relation, 1 on the diagonal."""
        scores = self.symmetric().scores if symmetric else self.scores
        values = scores.astype(np.float32) / HIGHEST
        np.fill_diagonal(values, 1.0)
        return values

    def between(self, names: Sequence[str]) -> np.ndarray:
        """float32 (C,C), score / 10 from each name to each other; 0 where the graph says nothing, 1 on the diagonal."""
        place = np.array([self.index.get(name.lower(), -1) for name in names])
        values = self.scores[np.ix_(place, place)].astype(np.float32) / HIGHEST
        values[place < 0] = values[:, place < 0] = 0.0
        np.fill_diagonal(values, 1.0)
        return values

    def negatives(self, names: Iterable[str], low: int, high: int) -> np.ndarray:
        """Places of the names that every one of `names` relates to with low <= score <= high: the intersection, as the
        published code draws it. Names of the image that have no relations do not count; none that do: no places.
        """
        own = self.places(names)
        own_rows = own[self.scores[own].any(axis=1)] if len(own) else own
        if not len(own_rows):
            return own_rows
        rows = self.scores[own_rows]
        fits = ((rows >= low) & (rows <= high)).all(axis=0)
        fits[own] = False
        return np.flatnonzero(fits)

    def positives(self, names: Iterable[str], low: int, high: int) -> np.ndarray:
        """Places of the names that any of `names` relates to with low <= score <= high, themselves left out."""
        own = self.places(names)
        rows = self.scores[own]
        fits = ((rows >= max(low, LOWEST)) & (rows <= high)).any(axis=0)
        fits[own] = False
        return np.flatnonzero(fits)

    def save(self, path: str | Path) -> None:
        """Plain JSON: {"names": [T], "sources": [...], "edges": [[from, to, score, source], ...]}, all by place."""
        rows, columns = np.nonzero(self.scores)
        origin = np.zeros_like(self.scores) if self.origin is None else self.origin
        edges = np.stack([rows, columns, self.scores[rows, columns], origin[rows, columns]], axis=1).tolist()
        body = {"names": list(self.names), "sources": list(self.sources), "edges": edges}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(body, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")

    def save_as_skysa(self, path: str | Path) -> None:
        """Sky-SA's text, one relation a line; the reason is where the score comes from. `load_graph` reads it back."""
        rows, columns = np.nonzero(self.scores)
        origin = np.zeros_like(self.scores) if self.origin is None else self.origin
        with open(path, "w", encoding="utf-8") as file:
            for i, j in zip(rows.tolist(), columns.tolist()):
                fields = (f'"{self.names[i]}"', f'"{self.names[j]}"', str(self.scores[i, j]))
                line = ('("relationship"', *fields, f'"{self.sources[origin[i, j]]}")')
                file.write(DELIMITER.join(line) + "\n")

    @classmethod
    def of_edges(cls, names: Sequence[str], edges: np.ndarray, sources: Sequence[str] = ("unknown",)) -> RelationGraph:
        """From (E,4) integers: from, to, score, source."""
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
        """From any measure of likeness, float (T,T), the more the more alike; NaN: no relation.

        Scores are tenths of the rank among all pairs off the diagonal, so 1 to 3 are the three tenths that are least
        alike, whatever the measure's own scale.
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
    """A graph from our JSON or from Sky-SA's text, told apart by the first character."""
    return load_graph_with_report(str(path))[0]


@lru_cache
def load_graph_with_report(path: str) -> tuple[RelationGraph, dict[str, int]]:
    """The graph and what was odd in its file: defect -> how many lines.

    Raises:
        FileNotFoundError: no such file. ValueError: not one relation in it; shows how a line should look.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no relation graph at {path!r}: tools/build_graph.py makes one")
    text = read_text(path)
    if text.lstrip().startswith("{"):
        try:
            body = json.loads(text)
            return RelationGraph.of_edges(body["names"], np.array(body["edges"]), body.get("sources", ["unknown"])), {}
        except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path} is not a graph as RelationGraph.save writes it: {error!r}") from error
    return parse_relations(text.splitlines(), path)


def parse_relations(lines: Iterable[str], path: str) -> tuple[RelationGraph, dict[str, int]]:
    """Sky-SA's text. Of a pair that comes twice the last counts; every line that is not taken as it is gets counted."""
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
        odd["pairs that come again (the last counts)"] += (pair[0], pair[1]) in scores
        scores[pair[0], pair[1]] = relation[2]
    if not scores:
        raise ValueError(
            f'{path} holds no relation: a line must be ("relationship"{DELIMITER}"lake"{DELIMITER}"pond"{DELIMITER}9'
            f"{DELIMITER}...), fields split by the literal {DELIMITER}; found {dict(odd)}"
        )
    edges = np.array([(i, j, score, 0) for (i, j), score in scores.items()])
    return RelationGraph.of_edges(spelled, edges, [Path(path).name]), {k: n for k, n in odd.items() if n}


def parse_relation(line: str, odd: Counter) -> tuple[str, str, int] | None:
    """(from, to, score) of one line, or None; what is wrong or was mended goes into `odd`."""
    fields = [part.strip() for part in line.strip().split(DELIMITER)]
    if len(fields) < 4:
        odd[f"lines without {DELIMITER}, or with too few fields"] += 1
        return None
    if fields[0].strip('"( ').lower() != "relationship":
        odd["lines that are no relationship"] += 1
        return None
    source, target = (" ".join(part.strip('"').split()) for part in fields[1:3])
    try:
        score = int(fields[3])
    except ValueError:
        try:
            score = int(fields[3].strip('") '))
            odd["scores with signs round them, mended"] += 1
        except ValueError:
            odd["scores that are no integer"] += 1
            return None
    if not LOWEST <= score <= HIGHEST:
        odd[f"scores not from {LOWEST} to {HIGHEST}"] += 1
        return None
    if not source or not target or source.lower() == target.lower():
        odd["relations of a name to itself or to nothing"] += 1
        return None
    return source, target, score
