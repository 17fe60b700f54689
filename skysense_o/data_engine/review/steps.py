"""One reviewer's way through the regions: what each key and click does, and where it leads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import chain

from skysense_o.clicks import box_between
from skysense_o.data_engine.review.log import Decision
from skysense_o.data_engine.review.session import Review, View

CHOOSE, MERGE, SPLIT = "Choose (c)", "Merge into (m)", "Split by a box (s)"
MOST_CHOICES = 5


@dataclass(frozen=True)
class Place:
    """Where a reviewer is. The browser keeps it, so that a new server goes on where the old one died.

    corner: of a box whose second corner is still to come.
    """

    reviewer: str
    round: int = 1
    tile: str = ""
    region: int = 0
    corner: tuple[int, int] | None = None

    @classmethod
    def read(cls, text: str) -> Place:
        """
        Raises:
            ValueError: nobody is reviewing yet.
        """
        if not text:
            raise ValueError("who are you? Give a name and begin")
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return json.dumps(asdict(self))


Step = tuple[Place, str]


class Steps:
    """Each step takes a place and gives the next one, with a line for people. Decisions are on the disk by then."""

    def __init__(self, review: Review, names: Iterable[str] = ()) -> None:
        """names: to offer beside those of the regions."""
        self.review = review
        self.names: dict[str, str] = {}
        said = (d.name for history in review.log.history.values() for d in history if d.name)
        for name in chain(review.tiles.names(), said, map(str.strip, names)):
            if name:
                self.names.setdefault(name.casefold(), name)

    def begin(self, reviewer: str, round: int = 1) -> Step:
        """
        Raises:
            ValueError: no name.
        """
        reviewer = " ".join((reviewer or "").split())
        if not reviewer:
            raise ValueError("a reviewer needs a name")
        return self._on(Place(reviewer, round), "")

    def _on(self, place: Place, said: str) -> Step:
        """To the next region that is not decided yet; where none is left, the place stays."""
        found = self._beyond(place, 1, undecided=True)
        if found is None:
            first = place if place.tile else self._beyond(place, 1, undecided=False) or place
            return replace(first, corner=None), f"{said} Nothing is left to decide in round {place.round}.".strip()
        return found, said

    def _beyond(self, place: Place, step: int, undecided: bool) -> Place | None:
        here = [(place.tile, *item) for item in self._items(place)][::step]
        k = next((k + 1 for k, (_, region, _) in enumerate(here) if region == place.region), 0)
        others = self.review.walk(place.reviewer, place.round, place.tile, step)
        for tile, region, decided in chain(here[k:], (row for row in others if row[0] != place.tile), here[:k]):
            if not (undecided and decided):
                return replace(place, tile=tile, region=region, corner=None)
        return None

    def _items(self, place: Place) -> list[tuple[int, bool]]:
        return self.review.items(place.reviewer, place.tile, place.round) if place.tile else []

    def next(self, place: Place) -> Step:
        return self._beyond(place, 1, undecided=False) or place, ""

    def previous(self, place: Place) -> Step:
        return self._beyond(place, -1, undecided=False) or place, ""

    def view(self, place: Place) -> View:
        return self.review.view(place.reviewer, place.tile)

    def choices(self, place: Place) -> list[str]:
        """What the number keys say: in later rounds what the others said, then the names it might have."""
        view, said = self.view(place), {}
        if place.round > 1:
            said = self.review.verdicts(place.tile).get(place.region, {})
        others = [_as(who, verdict) for who, verdict in said.items() if who != place.reviewer]
        candidates = self.review.proposed(place.tile, view, place.region).candidates
        return [*others, *(_scored(*pair) for pair in candidates)][:MOST_CHOICES]

    def choose(self, place: Place, label: str) -> Step:
        """
        Raises:
            ValueError: the choice is none of the region's, or no more.
        """
        for who, verdict in self.review.verdicts(place.tile).get(place.region, {}).items():
            if place.round > 1 and label == _as(who, verdict):
                self.review.adopt(place.reviewer, who, place.tile, place.region, place.round)
                return self._on(place, f"Saved: region {place.region} as {who} has it.")
        for name, score in self.review.proposed(place.tile, self.view(place), place.region).candidates:
            if label == _scored(name, score):
                return self.rename(place, name)
        raise ValueError(f"{label!r} is no more a choice: look again")

    def accept(self, place: Place) -> Step:
        return self.rename(place, self.review.proposed(place.tile, self.view(place), place.region).name)

    def rename(self, place: Place, name: str | None) -> Step:
        """Give the region a name, in the spelling of those that are known."""
        name = " ".join((name or "").split())
        name = self.names.get(name.casefold(), name)
        proposed = self.review.proposed(place.tile, self.view(place), place.region).name
        self._decide(place, "accept" if name == proposed else "rename", name=name)
        self.names.setdefault(name.casefold(), name)
        return self._on(place, f"Saved: region {place.region} is {name}.")

    def reject(self, place: Place) -> Step:
        self._decide(place, "reject")
        return self._on(place, f"Saved: region {place.region} is rejected.")

    def merge(self, place: Place, into: int) -> Step:
        self._decide(place, "merge", into=into)
        return self._on(place, f"Saved: region {place.region} is part of {into}.")

    def split(self, place: Place, box: tuple[int, int, int, int]) -> Step:
        """The part of the region in the box becomes a region; both are to be decided on then."""
        cut = self._decide(place, "split", box=box)
        return replace(place, corner=None), f"Saved: region {cut.into} is cut out of {place.region}."

    def undo(self, place: Place) -> Step:
        """Take back the reviewer's latest decision, and go there."""
        last = self.review.undo(place.reviewer, place.round)
        if last is None:
            return place, "Nothing to take back."
        said = f"Taken back: {last.action} of region {last.region}."
        return replace(place, tile=last.tile, region=last.region, corner=None), said

    def _decide(self, place: Place, action: str, **what) -> Decision:
        return self.review.decide(Decision(place.tile, place.region, place.reviewer, action, round=place.round, **what))

    def click(self, place: Place, mode: str, x: int, y: int) -> Step:
        """A pixel of the tile: chosen, merged into, or a corner of a box."""
        if mode == SPLIT and place.corner is None:
            return replace(place, corner=(x, y)), "Now the opposite corner."
        if mode == SPLIT:
            return self.split(place, box_between(place.corner, (x, y)))
        region = int(self.review.labels_of(place.tile, self.view(place), merged=True)[y, x])
        return self.merge(place, region) if mode == MERGE else (replace(place, region=region, corner=None), "")

    def enter(self, place: Place, mode: str, text: str) -> Step:
        """What is typed: the number of a region to choose or to merge into, or the corners of a box.

        Raises:
            ValueError: other words than the mode takes.
        """
        wanted = 4 if mode == SPLIT else 1
        words = (text or "").replace(",", " ").split()
        if len(words) != wanted or not all(word.isdigit() for word in words):
            form = "x0 y0 x1 y1, in pixels" if mode == SPLIT else "the number of a region"
            raise ValueError(f"{text!r} is not {form}")
        numbers = tuple(map(int, words))
        if mode == SPLIT:
            return self.split(place, numbers)
        if mode == MERGE:
            return self.merge(place, numbers[0])
        if numbers[0] not in self.view(place).regions:
            raise ValueError(f"no region {numbers[0]} in {place.tile}")
        return replace(place, region=numbers[0], corner=None), ""


def _as(who: str, verdict) -> str:
    return f"as {who}: {verdict}"


def _scored(name: str, score: float) -> str:
    return f"{name}  {score:.2f}"
