"""Find out what label values mean for each concept, and choose the words of a training sample.

Shape letters: K concepts, V label values, C words of a sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from skysense_o.data.catalog import spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.concepts import load_concepts
from skysense_o.data.relation_graph import check_thresholds, load_graph
from skysense_o.sample import MAYBE, NO, UNKNOWN, YES
from skysense_o.vocabulary import Vocabulary

NEVER_MISSED = {"simd": ("aircraft", 6), "harbor_ships": ("ship", 1000), "neon_crowns": ("tree", 1000)}
"""Data set -> (concept, number N). If an image has at most N boxes of the concept, all its objects have a box."""


COMMON = ("vegetation", "tree", "grass", "bare land", "water", "building", "road", "paved area")
"""Common land cover. In a data set with one labelled class, every pixel outside this class shows one of these."""
CANDIDATES = 4
"""Number of common land-cover concepts in a sample's vocabulary."""


@lru_cache
def class_says(dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """What the label values of a data set with label images mean: YES, NO, UNKNOWN or MAYBE per value and concept.

    A pixel of one class is NO for the concepts of the other classes.

    Returns:
        int8 (V,K), and the concepts of the classes.
    """
    concepts, table = load_concepts(), spec_of(dataset).class_table_name
    classes = load_classes(table)
    says = np.full((len(classes), len(concepts)), UNKNOWN, np.int8)
    meant = [concepts.of_class(table, c) for c in range(len(classes))]
    own = {concept for concept in meant if concept is not None}
    for c, concept in enumerate(meant):
        if concept is not None:
            says[c] = _of_no_other(concept, own)
        else:
            says[c, [concepts.index(name) for name in COMMON if name in concepts.names]] = MAYBE
            says[c, concepts.above[:, concepts.nots[f"{table}/{classes.classes[c]}"]]] = NO
    return says, np.array(sorted(own))


ALSO = {"crop field": ("bare land",), "chaparral": ("bare land", "tree"), "bare land": ("beach",)}
"""Outlined classes whose pixels may also be of other classes: a ploughed field is bare land, and bare land may be sand,
as a beach is."""


def _of_no_other(concept: int, own: set[int]) -> np.ndarray:
    """int8 (K,): what a pixel of a class says if each pixel of a data set has one of the classes `own` alone: it is of
    no other class and of no kind of it, unless its class is a kind of the other class.
    """
    concepts = load_concepts()
    says = concepts.says[concept].copy()
    for other in own:
        if not concepts.above[concept, other]:
            says[concepts.above[:, other] & (says == UNKNOWN)] = NO
    return says


@lru_cache
def object_says(dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """The same as `class_says` for boxes, points or shapes; the label values are the 2 C + 1 of `weak.box_masks`."""
    concepts, table = load_concepts(), spec_of(dataset).class_table_name
    classes = load_classes(table)
    count = len(classes)
    says = np.full((2 * count + 1, len(concepts)), UNKNOWN, np.int8)
    meant = [concepts.of_class(table, c) for c in range(count)]
    for c, concept in enumerate(meant):
        says[c] = concepts.says[concept]
        if spec_of(dataset).task == "shapes":
            also = {concepts.index(name) for name in ALSO.get(concepts.names[concept], ())}
            says[c] = _of_no_other(concept, set(meant) - also)
        says[count + c, concepts.above[:, concept]] = NO
        aircraft = concepts.index("aircraft")
        if concepts.above[concept, aircraft]:
            says[count + c, concepts.above[:, aircraft]] = NO
    return says, np.array(sorted(set(meant)))


def object_values(record: dict) -> np.ndarray:
    """bool (256,): True for label values of masks of classes or objects; False for background, points and scenes."""
    values, classes = np.zeros(256, bool), load_classes(spec_of(record["dataset"]).class_table_name)
    if "sem_seg_file_name" in record:
        values[: len(classes)] = ~np.array(classes.background)
    elif "boxes" in record or "shapes" in record:
        values[: len(classes)] = True
    return values


def outside_says(record: dict) -> np.ndarray:
    """int8 (K,): what a pixel outside of all boxes or shapes means; mostly UNKNOWN, as some objects have no box."""
    concepts = load_concepts()
    says = np.full(len(concepts), UNKNOWN, np.int8)
    dataset = record["dataset"]
    if "shapes" in record:
        return _outside_shapes(record)
    if dataset in NEVER_MISSED:
        always, most = NEVER_MISSED[dataset]
        below, table = concepts.above[:, concepts.index(always)], spec_of(dataset).class_table_name
        boxed = [concepts.of_class(table, int(box[4])) for box in record["boxes"]]
        if sum(below[concept] for concept in boxed) <= most:
            says[below] = NO
    return says


def shapes_say(record: dict, mentioned: Iterable[int] = ()) -> np.ndarray:
    """`object_says` for an image with shapes, made more precise by the scene class of the image.

    - Outlined pixels show nothing that is absent from images of the scene class. If the scene class lists some kinds of
      the outlined class, they are of no other kind.
    - In an image of a river, outlined water is also "river": outlined pixels are of a kind of their class if this kind
      is certain in images of the scene class, and neither the class itself nor another kind of it is listed.

    Args:
        record: of a data set with shapes.
        mentioned: concepts that the captions of the image name; they count as listed.

    Returns:
        int8 (V,K), a new array.
    """
    concepts, table = load_concepts(), spec_of(record["dataset"]).class_table_name
    says = object_says(record["dataset"])[0].copy()
    says[-1] = outside_says(record)
    if not record["kind"]:
        return says
    scene = concepts.scenes[record["kind"]]
    absent = concepts.scene_says(scene, dict.fromkeys(mentioned, 0)) == NO
    certain = {concept for concept in (scene.whole, *scene.shows) if concept is not None}
    listed = np.zeros(len(concepts), bool)
    listed[[*certain, *scene.may, *mentioned]] = True
    for label in range(len(load_classes(table))):
        concept = concepts.of_class(table, label)
        below = concepts.above[:, concept]
        kinds = listed & below & (np.arange(len(concepts)) != concept)
        related = concepts.above[:, kinds].any(1) | concepts.above[kinds].any(0)
        others = below & ~related & kinds.any()
        others[concept] = False
        says[label, (says[label] == UNKNOWN) & (absent | others)] = NO
        named = np.flatnonzero(listed & below)
        if len(named) == 1 and named[0] in certain:
            says[label, concepts.above[named[0]]] = YES
    return says


def _outside_shapes(record: dict) -> np.ndarray:
    """int8 (K,): NO for concepts whose objects all have a shape, and for concepts that the scene class excludes.

    A more general concept of these (water for sea) is also NO if none of its other kinds can be in the image.
    """
    concepts, table = load_concepts(), spec_of(record["dataset"]).class_table_name
    says, may = np.full(len(concepts), UNKNOWN, np.int8), ()
    if record["kind"]:
        scene = concepts.scenes[record["kind"]]
        says, may = np.where(concepts.scene_says(scene) == NO, NO, UNKNOWN).astype(np.int8), scene.may
    for concept in [concepts.of_class(table, c) for c in record["complete"]]:
        says[concepts.above[:, concept]] = NO
    for concept in [concepts.of_class(table, c) for c in record["complete"]]:
        wider = concepts.above[concept]
        for parent in set(np.flatnonzero(wider & ~concepts.place)) - {concept, *may}:
            if (says[concepts.above[:, parent] & ~wider] == NO).all():
                says[parent] = NO
    return says


@dataclass(frozen=True)
class WordChooser:
    """Chooses the words of a sample: the sample's concepts, sometimes more general concepts, and negatives.

    Args:
        synonyms: draw one of the words of each concept, and for negatives also of its kinds; else use its name.
        count: number of words; a sample with more concepts has more words.
        hypernyms: probability of adding a concept that is more general than another one of the sample.
        graph: file of a relation graph of concepts. The negatives that it gives for the concepts in the image are drawn
            first, then those that are not too similar to one of them; without a graph, all are drawn alike.
        thresholds: see `TextSampler`.
    """

    synonyms: bool
    count: int
    hypernyms: float
    graph: str = ""
    thresholds: tuple[int, int, int, int] = (1, 3, 9, 10)

    def __post_init__(self) -> None:
        check_thresholds(self.thresholds)

    def __call__(
        self, labels: np.ndarray, says: np.ndarray, own: np.ndarray
    ) -> tuple[Vocabulary, np.ndarray, np.ndarray | None]:
        """Choose words, with NumPy's global generator.

        Args:
            labels: uint8 (H,W), label values or IGNORE.
            says: int8 (V,K), see `class_says`.
            own: concepts that are always among the words.

        Returns:
            the vocabulary of C classes, the columns of `says` for these classes, int8 (V,C), and with a graph the
            visual similarity of the classes, float32 (C,C).
        """
        concepts = load_concepts()
        counts = np.bincount(labels.ravel(), minlength=256)[: len(says)]
        seen = says[counts > 0]
        positive = (seen >= YES).any(0) if len(seen) else np.zeros(len(concepts), bool)
        wider = positive & (concepts.above & positive[:, None] & ~np.eye(len(concepts), dtype=bool)).any(0)
        wanted = np.zeros(len(concepts), bool)
        wanted[own] = True
        wanted |= positive & (~wider | (np.random.rand(len(concepts)) < self.hypernyms))
        common = np.flatnonzero((seen == MAYBE).any(0) & ~wanted)
        wanted[np.random.permutation(common)[:CANDIDATES]] = True
        denied = (counts[:, None] * (says == NO)).sum(0) / max(1, labels.size)
        pool = np.flatnonzero(~wanted & ~positive & (denied > 0))
        chosen = np.flatnonzero(wanted)
        for part in self._by_graph(pool, np.flatnonzero(wanted & positive)):
            more = min(self.count - len(chosen), len(part))
            if more > 0:
                share = denied[part] ** 0.5
                chosen = np.concatenate([chosen, np.random.choice(part, more, replace=False, p=share / share.sum())])
        if not len(chosen):
            chosen = np.array([np.random.randint(len(concepts))])
        words = [
            self._called(concepts.names[k], concepts.words[k], concepts.kinds[k] * (not wanted[k])) for k in chosen
        ]
        alike = load_graph(self.graph).between([concepts.names[k] for k in chosen]) if self.graph else None
        return Vocabulary(tuple(words), tuple((w,) for w in words), (False,) * len(words)), says[:, chosen], alike

    def _by_graph(self, pool: np.ndarray, shown: np.ndarray) -> list[np.ndarray]:
        """Divide the concepts of `pool` into parts to draw from in turn, for an image of the concepts `shown`."""
        if not self.graph:
            return [pool]
        graph, names = load_graph(self.graph), load_concepts().names
        low, high, near, nearest = self.thresholds
        here = [names[k] for k in shown]
        first, never = (
            np.isin([graph.index.get(names[k].lower(), -1) for k in pool], some)
            for some in (graph.negatives(here, low, high), graph.positives(here, near, nearest))
        )
        return [pool[first], pool[~first & ~never]]

    def _called(self, name: str, words: tuple[str, ...], kinds: tuple[str, ...]) -> str:
        """A word for a concept: its name with probability 1/3, else one of its words."""
        choice = words + kinds
        if not self.synonyms or not choice or np.random.rand() < 1 / 3:
            return name
        return choice[np.random.randint(len(choice))]
