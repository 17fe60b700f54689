"""Class tables: `datasets/classes/<name>.json` has the classes of a data set, for training, evaluation and legends."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from skysense_o.shipped_files import shipped_file
from skysense_o.text_files import read_json_file, read_lines, read_yaml, shown

CLASSES_FOLDER = shipped_file("datasets/classes")
OWN = "dataset.yaml"
"""The file that describes a user's own data set; see `own.py`."""
KEYS = ("id", "name", "synonyms", "kinds", "color", "background", "folder", "parent")


@dataclass(frozen=True)
class ClassTable:
    """C classes in the order of their ids."""

    classes: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]  # without the class's own name
    colors: tuple[tuple[int, int, int], ...]  # RGB, 0..255
    background: tuple[bool, ...] = field(default=())  # True for a class that stands for everything else
    folders: tuple[str, ...] = field(default=())  # scene classification: the publisher's folder of each class
    parents: tuple[str, ...] = field(default=())  # a more general class; "" at the top
    kinds: tuple[tuple[str, ...], ...] = field(default=())  # words for a part of the class: "wheat field" for crops

    def __len__(self) -> int:
        return len(self.classes)


@lru_cache
def load_classes(name: str) -> ClassTable:
    """Load the class table of a data set.

    Args:
        name: name of a table in `datasets/classes`, or path of a folder with a `dataset.yaml`.

    Raises:
        FileNotFoundError: there is no such table; the message lists the tables.
        ValueError: the table cannot be used, see `table_of`.

    >>> table = load_classes("dubai")
    >>> table.classes
    ('water', 'land', 'road', 'building', 'vegetation')
    >>> table.synonyms[0][:2], table.colors[0]
    (('river', 'lake'), (38, 120, 226))
    """
    path = CLASSES_FOLDER / f"{name}.json"
    if (Path(name) / OWN).is_file():
        path = Path(name) / OWN
    elif not path.is_file():
        tables = sorted(p.stem for p in CLASSES_FOLDER.glob("*.json"))
        near = get_close_matches(name, tables, 1)
        there = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(tables) or 'none'}"
        raise FileNotFoundError(f"no class table {name!r} in datasets/classes; {there}")
    body = read_yaml(path) if path.name == OWN else read_json_file(path)
    if not isinstance(body, dict) or "classes" not in body:
        raise ValueError(f"{path} has no 'classes': list the classes in the order of their ids")
    return table_of(body["classes"], str(path))


def table_of(entries: list, source: str) -> ClassTable:
    """Check class entries and build their table.

    Args:
        entries: per class its name, or {"name", "id", "synonyms", "kinds", "color", "background", "folder", "parent"}.
            Only the name is required; a class without a color is given one.
        source: file of the entries, for error messages.

    Raises:
        ValueError: an entry cannot be used, ids are out of order, or two classes have the same name. The message names
            the file, the key and what is permitted.

    >>> table_of(["water", {"name": "road", "synonyms": ["street"]}], "dataset.yaml").synonyms
    ((), ('street',))
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{source}: 'classes' is {shown(entries)}: it must list the classes in the order of their ids, such as"
            " [water, road]"
        )
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    for index, entry in enumerate(entries):
        _check_entry(entry, f"{source}: 'classes', entry {index}")
    ids = [entry.get("id", index) for index, entry in enumerate(entries)]
    if ids != list(range(len(entries))):
        raise ValueError(f"{source}: ids must run 0, 1, 2, ... in order, found {shown(ids)}")
    classes = [" ".join(entry["name"].split()) for entry in entries]
    plain = [name.lower() for name in classes]
    twice = sorted({name for name in classes if plain.count(name.lower()) > 1}) if len(set(plain)) < len(plain) else []
    if twice:
        raise ValueError(
            f"{source}: 'classes' has {twice} for two classes (upper and lower case count as equal): give each class"
            " its own name"
        )
    _check_words_differ(entries, source)
    return ClassTable(
        tuple(classes),
        tuple(tuple(entry.get("synonyms") or ()) for entry in entries),
        tuple(tuple(entry.get("color") or _hue(index)) for index, entry in enumerate(entries)),
        tuple(entry.get("background", False) for entry in entries),
        tuple(entry.get("folder", entry["name"]) for entry in entries),
        tuple(entry.get("parent", "") for entry in entries),
        tuple(tuple(entry.get("kinds") or ()) for entry in entries),
    )


def _check_words_differ(entries: list[dict], source: str) -> None:
    """Raise ValueError for a word that two classes share, or that contains a bar, which separates words."""
    class_of: dict[str, str] = {}
    for entry in entries:
        for word in (entry["name"], *(entry.get("synonyms") or ())):
            if "|" in word:
                raise ValueError(f"{source}: 'classes' has {word!r}: write further words as synonyms, not with bars")
            other = class_of.setdefault(" ".join(word.lower().split()), entry["name"])
            if other != entry["name"]:
                raise ValueError(
                    f"{source}: 'classes' has the word {word!r} for {other!r} and for {entry['name']!r}: give each"
                    " class its own words"
                )


def _check_entry(entry: object, where: str) -> None:
    """Raise ValueError for an entry of `classes` that cannot be used."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise ValueError(
            f"{where} is {shown(entry)}: 'classes' must list names, or entries with a name (quote numbers)"
        )
    unknown = sorted(map(str, set(entry) - set(KEYS)))
    if unknown:
        raise ValueError(f"{where} ({entry['name']!r}) has {unknown}: keys must be among {', '.join(KEYS)}")
    where = f"{where} ({entry['name']!r})"
    for key in ("synonyms", "kinds"):
        words = entry.get(key)
        if words is not None and not (
            isinstance(words, list | tuple) and all(isinstance(word, str) and word.strip() for word in words)
        ):
            raise ValueError(f"{where} has {key} {shown(words)}: it must be a list of words, such as [lake, pond]")
    color = entry.get("color")
    if color is not None and not (
        isinstance(color, list | tuple) and len(color) == 3 and all(type(c) is int and 0 <= c <= 255 for c in color)
    ):
        raise ValueError(
            f"{where} has color {shown(color)}: it must be three numbers from 0 to 255, [red, green, blue]"
        )
    for key, kind, permitted in (
        ("background", bool, "true or false"),
        ("folder", str, "text"),
        ("parent", str, "text"),
    ):
        if key in entry and not isinstance(entry[key], kind):
            raise ValueError(f"{where} has {key} {shown(entry[key])}: it must be {permitted}")


def _hue(index: int) -> tuple[int, int, int]:
    """A color for a class, distinct for the first 10,000 classes: hues by the golden ratio, in three brightnesses."""
    brightness = (0.9, 0.65, 0.8)[index // 40 % 3]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.85 - 0.3 * (index % 2), brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache
def load_distractors(file: str) -> tuple[str, ...]:
    """Load class names that occur in no training image, one per line of `datasets/classes/<file>`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = CLASSES_FOLDER / file
    if not path.is_file():
        raise FileNotFoundError(f"INPUT.DISTRACTOR_FILE {file!r} is not in datasets/classes: use 'distractors.txt'")
    return tuple(read_lines(path))
