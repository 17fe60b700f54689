"""Class tables: one JSON a data set, `datasets/classes/<name>.json`, for training, evaluation and legend alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CLASSES_FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "classes"


@dataclass(frozen=True)
class ClassTable:
    """C classes in the order of their ids."""

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]  # without the name itself
    colors: tuple[tuple[int, int, int], ...]  # RGB

    def __len__(self) -> int:
        return len(self.names)


@lru_cache
def load_classes(name: str) -> ClassTable:
    """The table of a data set.

    Raises:
        FileNotFoundError: there is no such table; lists those there are.
        ValueError: ids that do not run 0, 1, 2, ... in order.
    """
    path = CLASSES_FOLDER / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in CLASSES_FOLDER.glob("*.json"))) or "none"
        raise FileNotFoundError(f"no class table {name!r} in datasets/classes; there are: {there}")
    rows = json.loads(path.read_text())["classes"]
    if [row["id"] for row in rows] != list(range(len(rows))):
        raise ValueError(f"{path.name}: ids must run 0, 1, 2, ... in order, found {[row['id'] for row in rows]}")
    return ClassTable(
        tuple(row["name"] for row in rows),
        tuple(tuple(row.get("synonyms", ())) for row in rows),
        tuple(tuple(row["color"]) for row in rows),
    )


@lru_cache
def load_distractors(file: str) -> tuple[str, ...]:
    """Names that are in none of the training pictures, one a line, from `datasets/classes/<file>`."""
    path = CLASSES_FOLDER / file
    if not path.is_file():
        raise FileNotFoundError(f"INPUT.DISTRACTOR_FILE {file!r} is not in datasets/classes; 'distractors.txt' is")
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
