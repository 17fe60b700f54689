"""Relations between classes of different data sets: the table of concepts, `datasets/concepts.json`.

A label means yes, no or unknown for each word: a pixel with the label "grass" is vegetation (yes), not a building (no),
and perhaps a meadow (unknown).

Shape letters: K concepts, V label values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from skysense_o.data.classes import CLASSES_FOLDER, load_classes
from skysense_o.sample import NO, UNKNOWN, YES
from skysense_o.text_files import read_json_file

CONCEPTS_FILE = CLASSES_FOLDER.parent / "concepts.json"


@dataclass(frozen=True)
class SceneContents:
    """The concepts in images of one scene class; `Concepts.scene_says` concludes which other concepts are absent."""

    whole: int | None  # concept of every pixel
    place: int | None  # kind of place to which every pixel belongs, such as a harbour
    shows: dict[int, int]  # concept -> least share of the image's pixels, in percent
    may: tuple[int, ...]  # concepts that may be in the image


@dataclass(frozen=True)
class Concepts:
    """K concepts with names and words. `says[a, b]`: is a pixel of concept a also one of b? Yes, no or unknown."""

    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    kinds: tuple[tuple[str, ...], ...]  # words for a part of a concept: "wheat field" for crop field
    says: np.ndarray  # int8 (K,K)
    above: np.ndarray  # bool (K,K): the row's concept equals the column's concept, or is a kind of it
    fits: np.ndarray  # bool (K,K), symmetric: both concepts may be seen in one pixel
    place: np.ndarray  # bool (K,)
    landscape: np.ndarray  # bool (K,): fills most of an image, or is not in it
    classes: dict[str, int]  # "<table>/<class>" -> concept
    nots: dict[str, int]  # "<table>/<class>" -> the concept that pixels of this class are not
    scenes: dict[str, SceneContents] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Raises KeyError for a name that is not a concept."""
        if name not in self.names:
            raise KeyError(f"{name!r} is not a concept of {CONCEPTS_FILE.name}; choose one of {', '.join(self.names)}")
        return self.names.index(name)

    def of_class(self, table: str, label: int) -> int | None:
        """The concept of a class; None for a class that stands for everything else.

        Raises:
            KeyError: no concept lists the class under "of" in concepts.json.
        """
        classes = load_classes(table)
        for word in (classes.classes[label], classes.folders[label]):
            if f"{table}/{word}" in self.classes:
                return self.classes[f"{table}/{word}"]
        if classes.background[label]:
            return None
        raise KeyError(f"no concept of {CONCEPTS_FILE.name} has {table}/{classes.classes[label]} under 'of': add it")

    def scene_says(self, scene: SceneContents, mentioned: dict[int, int] | None = None) -> np.ndarray:
        """What an image of this scene class says of each concept, int8 (K,): YES, NO, UNKNOWN or a share in percent.

        Args:
            mentioned: further concepts that the image's captions name -> least share of the pixels, in percent.
        """
        shown = {**(mentioned or {}), **scene.shows}
        related = self.above | self.above.T
        held = [c for c in (scene.whole, scene.place, *shown, *scene.may) if c is not None]
        possible = related[:, held].any(1)
        if scene.whole is not None:
            possible |= self.fits[:, scene.whole] & ~self.place
        possible &= ~self.landscape | self.above[held].any(0)
        if scene.whole is None and scene.place is None:
            possible |= self.place  # a scene that names no place may lie in any place
        says = np.where(possible, UNKNOWN, NO).astype(np.int8)
        for concept, share in shown.items():
            above = self.above[concept]
            says[above] = np.maximum(says[above], max(2, share))
        for concept in (scene.whole, scene.place):
            if concept is not None:
                says[self.above[concept]] = YES
        return says


def kind_entries() -> list[str]:
    """The concepts that are kinds of others, and these others, in the form of the config key MODEL.KNOWN.KINDS.

    >>> [entry for entry in kind_entries() if entry.startswith("freeway|")][0].split(" < ")[1]
    'road'
    """
    concepts = load_concepts()
    strictly = concepts.above & ~np.eye(len(concepts), dtype=bool)
    entries = []
    for k in np.flatnonzero((strictly.any(1) | strictly.any(0)) & ~concepts.place):
        parents = strictly[k] & ~strictly[strictly[k]].any(0)  # those that are not above another one
        above = ", ".join(concepts.names[parent] for parent in np.flatnonzero(parents))
        words = (concepts.names[k], *(word for word in concepts.words[k] if word != concepts.names[k]))
        entries.append("|".join(words) + (f" < {above}" if above else ""))
    return entries


@lru_cache(1)
def load_concepts() -> Concepts:
    """Load datasets/concepts.json.

    Raises:
        ValueError: an entry names a concept or class that does not exist.
    """
    body = read_json_file(CONCEPTS_FILE)
    entries = body["concepts"]
    names = tuple(entries)
    index_of = {name: k for k, name in enumerate(names)}
    count = len(names)

    def at(name: str, where: str) -> int:
        if name not in index_of:
            raise ValueError(
                f"{CONCEPTS_FILE.name}: {where} names {name!r}, which is not a concept: add it or correct the name"
            )
        return index_of[name]

    above = np.eye(count, dtype=bool)
    for name, entry in entries.items():
        for parent in entry.get("is", ()):
            above[index_of[name], at(parent, name)] = True
    for _ in range(count):
        wider = (above.astype(int) @ above) > 0
        if (wider == above).all():
            break
        above = wider

    def pairs(key: str) -> np.ndarray:
        """bool (K,K), symmetric: pairs that the entries list under `key`, and all pairs of kinds of both."""
        listed = np.zeros((count, count), bool)
        for name, entry in entries.items():
            for other in entry.get(key, ()):
                listed[index_of[name], at(other, name)] = True
        return (above.astype(int) @ (listed | listed.T) @ above.T) > 0

    fits = pairs("with") & ~pairs("not") | above | above.T
    place, landscape = (
        np.array([entry.get("kind") == kind for entry in entries.values()]) for kind in ("place", "landscape")
    )
    says = np.where(fits, UNKNOWN, NO).astype(np.int8)
    says[:, place] = UNKNOWN
    says[place] = UNKNOWN
    says[above] = YES
    classes = {key: index_of[n] for n, e in entries.items() for key in (*e.get("of", ()), *e.get("labels", ()))}
    nots = {key: at(name, key) for key, name in body["nots"].items()}
    scenes = {
        key: SceneContents(
            at(s["whole"], key) if "whole" in s else None,
            at(s["place"], key) if "place" in s else None,
            {at(name, key): share for name, share in s.get("shows", {}).items()},
            tuple(at(name, key) for name in s.get("may", ())),
        )
        for key, s in body["scenes"].items()
    }
    words, kinds = _words(entries, above)
    return Concepts(names, words, kinds, says, above, fits, place, landscape, classes, nots, scenes)


def _words(entries: dict, above: np.ndarray) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Two lists with an entry per concept: its words, which include the words of its classes, and its kinds.

    A word of several concepts is kept for the concept of that name, else for the most specific concept: "river" is the
    word of the concept river, and not a synonym of water.
    """
    listed, parts = [], []
    for name, entry in entries.items():
        words, kinds = [name, *entry.get("words", ())], []
        for key in entry.get("of", ()):
            table, _, wanted = key.partition("/")
            classes = load_classes(table)
            found = [c for c in range(len(classes)) if wanted in (classes.classes[c], classes.folders[c])]
            if not found:
                raise ValueError(f"{CONCEPTS_FILE.name}: {name} has {key} under 'of', which is not a class: correct it")
            words += [classes.classes[found[0]], *classes.synonyms[found[0]]]
            kinds += classes.kinds[found[0]]
        listed.append(list(dict.fromkeys(" ".join(word.lower().split()) for word in words)))
        parts.append(kinds)
    owner: dict[str, int] = {}
    depth = above.sum(1)
    names = list(entries)
    for k, words in enumerate(listed):
        for word in words:
            now = owner.get(word)
            if now is None or word == names[k] or (word != names[now] and depth[k] > depth[now]):
                owner[word] = k
    own = tuple(tuple(word for word in words if owner[word] == k) for k, words in enumerate(listed))
    return own, tuple(tuple(word for word in dict.fromkeys(kinds) if word not in owner) for kinds in parts)
