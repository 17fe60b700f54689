"""Class tables: one JSON a data set, `datasets/classes/<name>.json`, for training, evaluation and legend alike."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml

CLASSES_FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "classes"
OWN = "dataset.yaml"
"""The file that says what a folder of one's own holds; see `own.py`."""


@dataclass(frozen=True)
class ClassTable:
    """C classes in the order of their ids."""

    classes: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]  # without the name itself
    colors: tuple[tuple[int, int, int], ...]  # RGB
    background: tuple[bool, ...] = field(default=())  # the class only stands for the rest
    folders: tuple[str, ...] = field(default=())  # scene classification: the publisher's folder of each class
    parents: tuple[str, ...] = field(default=())  # a coarser name; "" at the top
    kinds: tuple[tuple[str, ...], ...] = field(default=())  # words for a part: "wheat field" of a crop field

    def __len__(self) -> int:
        return len(self.classes)


@lru_cache
def load_classes(name: str) -> ClassTable:
    """The table of a data set, by its name or, for a folder of one's own, by its path.

    Raises:
        FileNotFoundError: there is no such table; lists those there are.
        ValueError: ids that do not run 0, 1, 2, ... in order, or a class without a name.
    """
    path = CLASSES_FOLDER / f"{name}.json"
    if (Path(name) / OWN).is_file():
        path = Path(name) / OWN
    elif not path.is_file():
        there = ", ".join(sorted(p.stem for p in CLASSES_FOLDER.glob("*.json"))) or "none"
        raise FileNotFoundError(f"no class table {name!r} in datasets/classes; there are: {there}")
    body = yaml.safe_load(path.read_text()) if path.name == OWN else json.loads(path.read_text())
    return table_of(body.get("classes") or [], str(path))


def table_of(rows: list, source: str) -> ClassTable:
    """Check and build. A row is a name, or {"id", "name", "synonyms", "color", "background", "folder", "parent"}.

    Only the name is needed; a colour left out is a hue of its own.

    Raises:
        ValueError: no classes, ids out of order, a blank name, or the same one twice.
    """
    rows = [{"name": row} if isinstance(row, str) else row for row in rows]
    if not rows or not all(isinstance(row, dict) and str(row.get("name", "")).strip() for row in rows):
        raise ValueError(f"{source}: 'classes' must list names, or entries with a name; found {rows!r:.200}")
    ids = [row.get("id", place) for place, row in enumerate(rows)]
    if ids != list(range(len(rows))):
        raise ValueError(f"{source}: ids must run 0, 1, 2, ... in order, found {ids}")
    classes = [" ".join(str(row["name"]).split()) for row in rows]
    twice = sorted({name for name in classes if classes.count(name) > 1}) if len(set(classes)) < len(classes) else []
    if twice:
        raise ValueError(f"{source}: {twice} stand for two classes: give each class its own name")
    return ClassTable(
        tuple(classes),
        tuple(tuple(row.get("synonyms", ())) for row in rows),
        tuple(tuple(row.get("color") or _hue(place)) for place, row in enumerate(rows)),
        tuple(bool(row.get("background", False)) for row in rows),
        tuple(row.get("folder", row["name"]) for row in rows),
        tuple(row.get("parent", "") for row in rows),
        tuple(tuple(row.get("kinds", ())) for row in rows),
    )


def _hue(place: int) -> tuple[int, int, int]:
    """Distinct for the first 10,000 classes or so: the golden ratio's steps round the wheel, in two tones."""
    import colorsys

    tone = (0.9, 0.65, 0.8)[place // 40 % 3]
    red, green, blue = colorsys.hsv_to_rgb(place * 0.618034 % 1.0, 0.85 - 0.3 * (place % 2), tone)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache
def load_distractors(file: str) -> tuple[str, ...]:
    """Names that are in none of the training images, one a line, from `datasets/classes/<file>`."""
    path = CLASSES_FOLDER / file
    if not path.is_file():
        raise FileNotFoundError(f"INPUT.DISTRACTOR_FILE {file!r} is not in datasets/classes; 'distractors.txt' is")
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
