"""Facts about a training that are stored in its weights: classes with synonyms, data sets, metres per pixel."""

from __future__ import annotations

import re
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from skysense_o.data.captions import is_caption_source
from skysense_o.data.catalog import find
from skysense_o.data.classes import load_classes
from skysense_o.data.concepts import load_concepts

PIXEL_TASKS = ("segmentation", "boxes", "points", "shapes")  # not classification: its images come at all scales
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def training_facts(names: Sequence[str]) -> tuple[list[str], list[str], list[float]]:
    """The facts to store in the weights of a training on these data sets.

    Args:
        names: as in DATASETS.TRAIN. Sets without classes, such as captions, add only their name.

    Returns:
        The classes sorted by name, each followed by its synonyms ("river|stream"); the names of the data sets; and
        [smallest, largest] metres per pixel of the data sets of PIXEL_TASKS, or [] if none states a number.
    """
    words: dict[str, dict[str, None]] = {}
    sets, metres = [], []
    for name in names:
        metadata = MetadataCatalog.get(name)
        table = metadata.get("class_table")
        sets.append(name)
        specs = [spec for spec, _ in find(name)] if not is_caption_source(name) else []
        metres += [metre for spec in specs if spec.task in PIXEL_TASKS for metre in stated_metres(spec.gsd)]
        for class_name, synonyms in _classes(table) if table else ():
            words.setdefault(class_name, {}).update(dict.fromkeys(synonyms))
    classes = [
        "|".join((name, *(word for word in synonyms if word != name))) for name, synonyms in sorted(words.items())
    ]
    return classes, sets, [min(metres), max(metres)] if metres else []


def stated_metres(gsd: str) -> list[float]:
    """The numbers in a data set's `gsd`, in metres per pixel: "0.01 to 0.02" -> [0.01, 0.02]."""
    return [float(number) for number in NUMBER.findall(gsd)]


def _classes(table: str) -> list[tuple[str, tuple[str, ...]]]:
    """(name, synonyms) of a table's classes, of the concepts that its scenes contain, and of more general concepts."""
    classes, concepts = load_classes(table), load_concepts()
    found = []
    for index, (name, synonyms) in enumerate(zip(classes.classes, classes.synonyms)):
        if classes.background[index]:
            continue
        found.append((name, synonyms))
        key = f"{table}/{name}"
        scene = concepts.scenes.get(key)
        shown = {concepts.classes.get(key), *((scene.whole, scene.place, *scene.shows) if scene else ())} - {None}
        above = sorted(k for k in range(len(concepts)) if any(concepts.above[concept, k] for concept in shown))
        found += [(concepts.names[k], concepts.words[k]) for k in above]
    return found
