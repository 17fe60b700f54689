"""A vocabulary of several hundred classes, for images whose content is not known."""

from __future__ import annotations

from collections.abc import Sequence

from skysense_o.data.catalog import spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.relation_graph import load_graph
from skysense_o.vocabulary import Vocabulary


def open_world(background: Sequence[str] = ()) -> tuple[Vocabulary, Sequence[tuple[int, int, int]] | None]:
    """The classes of Sky-SA's relation graph if Sky-SA is installed, else the classes of `open_world.json`.

    Args:
        background: words for everything that is none of these classes.

    Returns:
        the vocabulary, and the colours of its classes (None for the classes of the graph).
    """
    spec = spec_of("skysa")
    if (spec.root / spec.graph).is_file():
        return Vocabulary.of(load_graph(spec.root / spec.graph).names, background), None
    table = load_classes("open_world")
    return Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)], background), table.colors
