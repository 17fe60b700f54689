"""The state of a review: each reviewer's view of a tile, the verdicts on its regions, and the regions to decide on.

In round 1 reviewers work independently on all regions. Later rounds show the regions that nobody decided on, and those
on which reviewers disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skysense_o.data_engine.review.log import Decision, DecisionLog, Piece
from skysense_o.data_engine.review.masks import rle_mask
from skysense_o.data_engine.review.tiles import Proposed, Tiles

REST = 0


class Verdict(NamedTuple):
    """The outcome of one reviewer's decisions on a region; two reviewers who agree have equal verdicts.

    Attributes:
        name: class name, None if the region is rejected.
        group: the numbers of the regions that are merged into one with this region, including its own number.
        cuts: the numbers of the pieces that were split off from this region.
    """

    name: str | None
    group: tuple[int, ...]
    cuts: tuple[int, ...]

    def __str__(self) -> str:
        text = "rejected" if self.name is None else self.name
        if len(self.group) > 1:
            text += f" (merged: {', '.join(map(str, self.group))})"
        return text + (f" (without {', '.join(map(str, self.cuts))})" if self.cuts else "")


@dataclass(frozen=True)
class View:
    """A tile after one reviewer's decisions.

    Attributes:
        regions: the region numbers.
        cuts: the splits, in order.
        last: region -> the latest decision on it since the region was last split.
    """

    regions: tuple[int, ...]
    cuts: tuple[Decision, ...]
    last: dict[int, Decision]

    @classmethod
    def of(cls, regions: Iterable[int], decisions: Sequence[Decision]) -> View:
        """Apply a reviewer's valid decisions, in order, to the proposed regions."""
        numbers, cuts, last = list(regions), [], {}
        for decision in decisions:
            if decision.region not in numbers and (decision.region, decision.action) != (REST, "split"):
                continue  # the decision is on a piece whose split was undone
            if decision.action == "split":
                cuts.append(decision)
                numbers.append(decision.into)
                last.pop(decision.region, None)
            else:
                last[decision.region] = decision
        return cls(tuple(dict.fromkeys(numbers)), tuple(cuts), last)

    def root(self, region: int) -> int:
        """The region that `region` is finally merged into; `region` itself if it is not merged."""
        seen = set()
        while region in self.last and self.last[region].action == "merge" and region not in seen:
            seen.add(region)
            region = self.last[region].into
        return region

    def verdicts(self) -> dict[int, Verdict]:
        """Region -> verdict, for each region that was decided on or merged into a region that was decided on."""
        roots = {region: self.root(region) for region in self.regions}
        verdicts = {}
        for region, root in roots.items():
            decision = self.last.get(root)
            if decision is None or decision.action == "merge":
                continue
            name = None if decision.action == "reject" else decision.name
            group = tuple(other for other in sorted(roots) if roots[other] == root)
            cuts = sorted(cut.into for cut in self.cuts if cut.region == region)
            verdicts[region] = Verdict(name, group, tuple(cuts))
        return verdicts

    def origin(self, region: int) -> int:
        """The proposed region that a piece was split off from; a proposed region is its own origin."""
        parents = {cut.into: cut.region for cut in self.cuts}
        while region in parents:
            region = parents[region]
        return region


class Review:
    """The tiles of a work folder and its log of decisions.

    Raises:
        FileNotFoundError: the folder has no regions to review.
    """

    def __init__(self, work: Path) -> None:
        self.work, self.tiles, self.log = work, Tiles(work), DecisionLog(work)
        self._items: dict[tuple[str, str, int], tuple[int, list[tuple[int, bool]]]] = {}

    def view(self, reviewer: str, tile: str, rounds: int | None = None) -> View:
        """A tile after a reviewer's decisions of the first `rounds` rounds (None: of all rounds)."""
        return View.of(self.tiles.known(tile), self.log.standing(tile, reviewer, rounds))

    def verdicts(self, tile: str, rounds: int | None = None) -> dict[int, dict[str, Verdict]]:
        """Region -> reviewer -> verdict; an empty dict for regions that nobody decided on."""
        verdicts = {region: {} for region in self.tiles.known(tile)}
        for reviewer in list(self.log.lines.get(tile, ())):
            for region, verdict in self.view(reviewer, tile, rounds).verdicts().items():
                verdicts.setdefault(region, {})[reviewer] = verdict
        return verdicts

    def items(self, reviewer: str, tile: str, round: int) -> list[tuple[int, bool]]:
        """(region, whether decided) for each region of a tile that this reviewer decides on in this round."""
        lines = sum(len(decisions) for decisions in list(self.log.lines.get(tile, {}).values()))
        key = reviewer, tile, round
        if key not in self._items or self._items[key][0] != lines:
            self._items[key] = lines, self._items_of(reviewer, tile, round)
        return self._items[key][1]

    def _items_of(self, reviewer: str, tile: str, round: int) -> list[tuple[int, bool]]:
        view = self.view(reviewer, tile)
        if round <= 1:
            return [(region, region in view.last) for region in view.regions]
        unsettled = {region for region, votes in self.verdicts(tile).items() if len(set(votes.values())) != 1}
        items = []
        for region in view.regions:
            mine = view.last.get(region)
            now = mine is not None and mine.round >= round
            if now or region in unsettled or (mine is None and region not in self.tiles.known(tile)):
                items.append((region, now))
        return items

    def progress(self, reviewer: str, round: int) -> tuple[int, int]:
        """Return the number of regions that this reviewer has decided in this round, and the number of all regions."""
        items = [decided for tile in self.tiles for _, decided in self.items(reviewer, tile, round)]
        return sum(items), len(items)

    def walk(
        self, reviewer: str, round: int, tile: str | None = None, step: int = 1
    ) -> Iterator[tuple[str, int, bool]]:
        """Yield (tile, region, whether decided) over all tiles, starting at `tile` and wrapping around.

        Args:
            step: 1 walks forwards, -1 backwards.
        """
        order = list(self.tiles)[::step]
        start = order.index(tile) if tile in self.tiles.proposed else 0
        for stem in order[start:] + order[:start]:
            for region, decided in self.items(reviewer, stem, round)[::step]:
                yield stem, region, decided

    def labels(self, tile: str, cuts: Iterable[tuple[int, Piece]] = ()) -> np.ndarray:
        """The regions after splits, int32 (H,W). cuts: (number of the new piece, piece) pairs, applied in order."""
        labels = self.tiles.labels(tile)
        for number, piece in cuts:
            labels[piece_mask(labels, piece)] = number
        return labels

    def labels_of(self, tile: str, view: View, merged: bool = False) -> np.ndarray:
        """The regions of a view, int32 (H,W). merged: whether merged regions get the same number."""
        labels = self.labels(tile, [(cut.into, self.log.pieces[tile][cut.into]) for cut in view.cuts])
        if merged:
            for region in view.regions:
                if view.root(region) != region:
                    labels[labels == region] = view.root(region)
        return labels

    def proposed(self, tile: str, view: View, region: int) -> Proposed:
        """The proposal for a region; for a piece, the proposal for the region that it was split off from."""
        return self.tiles.known(tile).get(view.origin(region), Proposed("", 0.0, ()))

    def decide(self, decision: Decision) -> Decision:
        """Check a decision and write it, unless an equal decision is already valid.

        Returns:
            the decision that is valid now.

        Raises:
            ValueError: the decision is not possible; the message tells the reviewer why.
        """
        decision = replace(decision, name=None if decision.name is None else " ".join(decision.name.split()))
        if not decision.reviewer.strip():
            raise ValueError("a reviewer needs a name")
        view = self.view(decision.reviewer, decision.tile)
        self._check(decision, view)
        stands = view.last.get(decision.region)
        if stands is not None and stands.content() == decision.content() and stands.round == decision.round:
            return stands
        return self.log.append(decision, self.tiles.highest(decision.tile))

    def _check(self, decision: Decision, view: View) -> None:
        region, action = decision.region, decision.action
        if region == REST and region not in view.regions and action != "split":
            raise ValueError("these pixels are in no region: split a region off with a box first")
        if region not in view.regions and region != REST:
            there = ", ".join(map(str, view.regions))
            raise ValueError(f"no region {region} in {decision.tile}; its regions are {there}")
        if action in ("accept", "rename") and not decision.name:
            raise ValueError("no name: name the region, or reject it")
        if action == "merge":
            if decision.into not in view.regions:
                known = ", ".join(str(r) for r in view.regions if r != region)
                raise ValueError(f"no region {decision.into} to merge with; choose one of {known}")
            if view.root(decision.into) == view.root(region):
                raise ValueError(f"{region} and {decision.into} are merged already")
        if action == "split":
            labels = self.labels_of(decision.tile, view)
            inside = piece_mask(labels, Piece(region, decision.box, decision.mask))
            if inside.sum() in (0, (labels == region).sum()):
                part = "nothing" if not inside.any() else "all"
                raise ValueError(
                    f"the box {decision.box} contains {part} of region {region}: draw one that contains a part of it"
                )

    def undo(self, reviewer: str, round: int = 1) -> Decision | None:
        """Undo the reviewer's latest decision; returns it, or None if there is none."""
        self.log.refresh()
        history = self.log.history.get(reviewer)
        if not history:
            return None
        last = history[-1]
        self.log.append(Decision(last.tile, last.region, reviewer, "undo", round=round))
        return last

    def adopt(self, reviewer: str, other: str, tile: str, region: int, round: int) -> None:
        """Copy another reviewer's decisions on a region and on the pieces split off from it.

        Args:
            reviewer: who adopts the decisions.
            other: whose decisions are copied.

        Raises:
            ValueError: the other reviewer merged the region into a piece that this reviewer does not have.
        """
        mine, theirs = self.view(reviewer, tile), self.view(other, tile)
        decisions = [d for d in (*theirs.cuts, *theirs.last.values()) if _within(theirs, d.region, region)]
        for decision in decisions:
            if decision.action == "merge" and not (decision.into in mine.regions or decision.into in theirs.last):
                raise ValueError(
                    f"{other} merged region {region} with {decision.into}, which is a piece of another region"
                )
        for decision in reversed(self.log.standing(tile, reviewer)):
            if _within(mine, decision.region, region):
                self.log.append(Decision(tile, decision.region, reviewer, "undo", round=round))
        for decision in decisions:
            self.log.append(replace(decision, reviewer=reviewer, round=round), self.tiles.highest(tile))


def _within(view: View, region: int, whole: int) -> bool:
    parents = {cut.into: cut.region for cut in view.cuts}
    while region != whole and region in parents:
        region = parents[region]
    return region == whole


def piece_mask(labels: np.ndarray, piece: Piece) -> np.ndarray:
    """The pixels that a piece takes from its region, bool (H,W). labels: the region of each pixel before the split."""
    x0, y0, x1, y1 = piece.box
    inside = np.zeros(labels.shape, bool)
    inside[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = True
    if piece.mask is not None:
        inside &= rle_mask(piece.mask, labels.shape)
    return inside & (labels == piece.region)
