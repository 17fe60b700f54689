"""A vocabulary of several hundred classes, for images whose content is not known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from skysense_o.data.catalog import spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.relation_graph import load_graph
from skysense_o.vocabulary import Vocabulary


def open_world(background: Sequence[str] = ()) -> tuple[Vocabulary, Sequence[tuple[int, int, int]] | None]:
    """The classes of Sky-SA's relation graph if Sky-SA is installed, else the classes of `open_world.json`.

    Args:
        background: words for everything that is none of these classes.

    Of hundreds of classes, one is often a kind of the right general word, and a little probable. If narrower words won,
    the general word would lose to unrelated words, so here they do not.

    Returns:
        the vocabulary, and the colours of its classes (None for the classes of the graph).
    """
    spec = spec_of("skysa")
    if (spec.root / spec.graph).is_file():
        names = load_graph(spec.root / spec.graph).names
        return replace(Vocabulary.of(names, background), narrower_wins=False), None
    table = load_classes("open_world")
    vocabulary = Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)], background)
    return replace(vocabulary, narrower_wins=False), table.colors
