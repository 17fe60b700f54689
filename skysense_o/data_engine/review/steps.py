"""The actions behind the keys and clicks of the review page: each changes the position and may write a decision."""

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
class ReviewPosition:
    """The region that a reviewer looks at. It is stored in the browser, so that a restarted server can resume.

    Attributes:
        reviewer: name of the reviewer.
        round: review round, from 1.
        tile: the tile's id.
        region: the region's number.
        corner: x, y of the first corner of a box whose second corner is not set yet.
    """

    reviewer: str
    round: int = 1
    tile: str = ""
    region: int = 0
    corner: tuple[int, int] | None = None

    @classmethod
    def read(cls, text: str) -> ReviewPosition:
        """Parse the JSON that `__str__` writes.

        Raises:
            ValueError: the text is empty, because no reviewer has begun.
        """
        if not text:
            raise ValueError("no reviewer yet: give your name and begin")
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return json.dumps(asdict(self))


ActionResult = tuple[ReviewPosition, str]
"""The new position, and a message for the reviewer."""


class ReviewActions:
    """The actions of a review. Each takes a position and returns the new position; decisions are then on disk.

    Args:
        review: the review.
        names: class names to suggest in addition to the names of the regions.
    """

    def __init__(self, review: Review, names: Iterable[str] = ()) -> None:
        self.review = review
        self.names: dict[str, str] = {}
        decided = (d.name for history in review.log.history.values() for d in history if d.name)
        for name in chain(review.tiles.names(), decided, map(str.strip, names)):
            if name:
                self.names.setdefault(name.casefold(), name)

    def begin(self, reviewer: str, round: int = 1) -> ActionResult:
        """Go to the reviewer's first undecided region.

        Raises:
            ValueError: the reviewer's name is empty.
        """
        reviewer = " ".join((reviewer or "").split())
        if not reviewer:
            raise ValueError("a reviewer needs a name")
        return self._on(ReviewPosition(reviewer, round), "")

    def _on(self, position: ReviewPosition, message: str) -> ActionResult:
        """Go to the next undecided region; if there is none, stay."""
        following = self._beyond(position, 1, undecided=True)
        if following is None:
            first = position if position.tile else self._beyond(position, 1, undecided=False) or position
            text = f"{message} Nothing is left to decide in round {position.round}."
            return replace(first, corner=None), text.strip()
        return following, message

    def _beyond(self, position: ReviewPosition, step: int, undecided: bool) -> ReviewPosition | None:
        """The position of the next (step 1) or previous (step -1) region, wrapping around; None if there is none."""
        here = [(position.tile, *item) for item in self._items(position)][::step]
        k = next((k + 1 for k, (_, region, _) in enumerate(here) if region == position.region), 0)
        others = self.review.walk(position.reviewer, position.round, position.tile, step)
        for tile, region, decided in chain(here[k:], (row for row in others if row[0] != position.tile), here[:k]):
            if not (undecided and decided):
                return replace(position, tile=tile, region=region, corner=None)
        return None

    def _items(self, position: ReviewPosition) -> list[tuple[int, bool]]:
        return self.review.items(position.reviewer, position.tile, position.round) if position.tile else []

    def next(self, position: ReviewPosition) -> ActionResult:
        return self._beyond(position, 1, undecided=False) or position, ""

    def previous(self, position: ReviewPosition) -> ActionResult:
        return self._beyond(position, -1, undecided=False) or position, ""

    def view(self, position: ReviewPosition) -> View:
        return self.review.view(position.reviewer, position.tile)

    def choices(self, position: ReviewPosition) -> list[str]:
        """Labels of the number keys: from round 2 on, the other reviewers' verdicts; after these, candidate names."""
        view, verdicts = self.view(position), {}
        if position.round > 1:
            verdicts = self.review.verdicts(position.tile).get(position.region, {})
        others = [_as(who, verdict) for who, verdict in verdicts.items() if who != position.reviewer]
        candidates = self.review.proposed(position.tile, view, position.region).candidates
        return [*others, *(_scored(*pair) for pair in candidates)][:MOST_CHOICES]

    def choose(self, position: ReviewPosition, label: str) -> ActionResult:
        """Decide as one of the labels that `choices` returned.

        Raises:
            ValueError: the label is not (or no longer) among the region's choices.
        """
        for who, verdict in self.review.verdicts(position.tile).get(position.region, {}).items():
            if position.round > 1 and label == _as(who, verdict):
                self.review.adopt(position.reviewer, who, position.tile, position.region, position.round)
                return self._on(position, f"Saved: region {position.region} as {who} has it.")
        for name, score in self.review.proposed(position.tile, self.view(position), position.region).candidates:
            if label == _scored(name, score):
                return self.rename(position, name)
        raise ValueError(f"{label!r} is no longer a choice: the region has changed, reload it")

    def accept(self, position: ReviewPosition) -> ActionResult:
        return self.rename(position, self.review.proposed(position.tile, self.view(position), position.region).name)

    def rename(self, position: ReviewPosition, name: str | None) -> ActionResult:
        """Name the region. A name that is already known keeps its upper and lower case."""
        name = " ".join((name or "").split())
        name = self.names.get(name.casefold(), name)
        proposed = self.review.proposed(position.tile, self.view(position), position.region).name
        self._decide(position, "accept" if name == proposed else "rename", name=name)
        self.names.setdefault(name.casefold(), name)
        return self._on(position, f"Saved: region {position.region} is {name}.")

    def reject(self, position: ReviewPosition) -> ActionResult:
        self._decide(position, "reject")
        return self._on(position, f"Saved: region {position.region} is rejected.")

    def merge(self, position: ReviewPosition, into: int) -> ActionResult:
        self._decide(position, "merge", into=into)
        return self._on(position, f"Saved: region {position.region} is part of {into}.")

    def split(self, position: ReviewPosition, box: tuple[int, int, int, int]) -> ActionResult:
        """Make the part inside the box, half-open XYXY in pixels, a new region. Both regions become undecided."""
        cut = self._decide(position, "split", box=box)
        return replace(position, corner=None), f"Saved: region {cut.into} is cut out of {position.region}."

    def undo(self, position: ReviewPosition) -> ActionResult:
        """Undo the reviewer's latest decision, and go to its region."""
        last = self.review.undo(position.reviewer, position.round)
        if last is None:
            return position, "Nothing to undo."
        message = f"Undone: {last.action} of region {last.region}."
        return replace(position, tile=last.tile, region=last.region, corner=None), message

    def _decide(self, position: ReviewPosition, action: str, **fields) -> Decision:
        decision = Decision(position.tile, position.region, position.reviewer, action, round=position.round, **fields)
        return self.review.decide(decision)

    def click(self, position: ReviewPosition, mode: str, x: int, y: int) -> ActionResult:
        """Handle a click on pixel x, y of the tile: choose its region, merge into it, or set a corner of a box."""
        if mode == SPLIT and position.corner is None:
            return replace(position, corner=(x, y)), "Now the opposite corner."
        if mode == SPLIT:
            return self.split(position, box_between(position.corner, (x, y)))
        region = int(self.review.labels_of(position.tile, self.view(position), merged=True)[y, x])
        return self.merge(position, region) if mode == MERGE else (replace(position, region=region, corner=None), "")

    def enter(self, position: ReviewPosition, mode: str, text: str) -> ActionResult:
        """Handle typed text: the number of a region to choose or to merge into, or the corners of a box to split off.

        Raises:
            ValueError: the text does not have the numbers that the mode needs.
        """
        count = 4 if mode == SPLIT else 1
        words = (text or "").replace(",", " ").split()
        if len(words) != count or not all(word.isdigit() for word in words):
            expected = "x0 y0 x1 y1, in pixels" if mode == SPLIT else "the number of a region"
            raise ValueError(f"{text!r} is not {expected}")
        numbers = tuple(map(int, words))
        if mode == SPLIT:
            return self.split(position, numbers)
        if mode == MERGE:
            return self.merge(position, numbers[0])
        if numbers[0] not in self.view(position).regions:
            raise ValueError(f"no region {numbers[0]} in {position.tile}")
        return replace(position, region=numbers[0], corner=None), ""


def _as(who: str, verdict) -> str:
    return f"as {who}: {verdict}"


def _scored(name: str, score: float) -> str:
    return f"{name}  {score:.2f}"
