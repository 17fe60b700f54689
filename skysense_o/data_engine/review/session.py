"""People decide on regions: what each of them made of a tile, and what is theirs to look at next.

Reviewers do not see one another's work in round 1. Later rounds show what they disagree on and what nobody saw.
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
    """What one reviewer's decisions on a region come to; equal where two reviewers want the same.

    name: None where it is rejected. group: the regions that are one with it, itself included. cuts: the pieces that
    were cut out of it.
    """

    name: str | None
    group: tuple[int, ...]
    cuts: tuple[int, ...]

    def __str__(self) -> str:
        text = "rejected" if self.name is None else self.name
        if len(self.group) > 1:
            text += f" (one of {', '.join(map(str, self.group))})"
        return text + (f" (without {', '.join(map(str, self.cuts))})" if self.cuts else "")


@dataclass(frozen=True)
class View:
    """A tile as one reviewer left it. cuts: splits, in order. last: what was said of each region since its last cut."""

    regions: tuple[int, ...]
    cuts: tuple[Decision, ...]
    last: dict[int, Decision]

    @classmethod
    def of(cls, regions: Iterable[int], decisions: Sequence[Decision]) -> View:
        """regions: as proposed. decisions: one reviewer's that stand, in order."""
        found, cuts, last = list(regions), [], {}
        for decision in decisions:
            if decision.region not in found and (decision.region, decision.action) != (REST, "split"):
                continue  # of a piece whose split was taken back
            if decision.action == "split":
                cuts.append(decision)
                found.append(decision.into)
                last.pop(decision.region, None)
            else:
                last[decision.region] = decision
        return cls(tuple(dict.fromkeys(found)), tuple(cuts), last)

    def root(self, region: int) -> int:
        """The region that it was merged into in the end; itself where it was not."""
        seen = set()
        while region in self.last and self.last[region].action == "merge" and region not in seen:
            seen.add(region)
            region = self.last[region].into
        return region

    def verdicts(self) -> dict[int, Verdict]:
        """Of each region that was decided, or merged into one that was."""
        roots = {region: self.root(region) for region in self.regions}
        found = {}
        for region, root in roots.items():
            decision = self.last.get(root)
            if decision is None or decision.action == "merge":
                continue
            name = None if decision.action == "reject" else decision.name
            group = tuple(other for other in sorted(roots) if roots[other] == root)
            cuts = sorted(cut.into for cut in self.cuts if cut.region == region)
            found[region] = Verdict(name, group, tuple(cuts))
        return found

    def origin(self, region: int) -> int:
        """The proposed region that a piece comes from."""
        parents = {cut.into: cut.region for cut in self.cuts}
        while region in parents:
            region = parents[region]
        return region


class Review:
    """A work folder's tiles and its log of decisions."""

    def __init__(self, work: Path) -> None:
        """
        Raises:
            FileNotFoundError: no regions there to review.
        """
        self.work, self.tiles, self.log = work, Tiles(work), DecisionLog(work)
        self._items: dict[tuple[str, str, int], tuple[int, list[tuple[int, bool]]]] = {}

    def view(self, reviewer: str, tile: str, rounds: int | None = None) -> View:
        """rounds: count decisions up to this one; None for all."""
        return View.of(self.tiles.known(tile), self.log.standing(tile, reviewer, rounds))

    def verdicts(self, tile: str, rounds: int | None = None) -> dict[int, dict[str, Verdict]]:
        """region -> reviewer -> verdict; regions nobody decided are there and empty."""
        found = {region: {} for region in self.tiles.known(tile)}
        for reviewer in list(self.log.lines.get(tile, ())):
            for region, verdict in self.view(reviewer, tile, rounds).verdicts().items():
                found.setdefault(region, {})[reviewer] = verdict
        return found

    def items(self, reviewer: str, tile: str, round: int) -> list[tuple[int, bool]]:
        """(region, decided) of the regions of a tile that are this reviewer's in this round."""
        lines = sum(len(said) for said in list(self.log.lines.get(tile, {}).values()))
        key = reviewer, tile, round
        if key not in self._items or self._items[key][0] != lines:
            self._items[key] = lines, self._items_of(reviewer, tile, round)
        return self._items[key][1]

    def _items_of(self, reviewer: str, tile: str, round: int) -> list[tuple[int, bool]]:
        view = self.view(reviewer, tile)
        if round <= 1:
            return [(region, region in view.last) for region in view.regions]
        unsettled = {region for region, said in self.verdicts(tile).items() if len(set(said.values())) != 1}
        found = []
        for region in view.regions:
            mine = view.last.get(region)
            now = mine is not None and mine.round >= round
            if now or region in unsettled or (mine is None and region not in self.tiles.known(tile)):
                found.append((region, now))
        return found

    def progress(self, reviewer: str, round: int) -> tuple[int, int]:
        """(decided, all) of this reviewer's regions in this round."""
        items = [decided for tile in self.tiles for _, decided in self.items(reviewer, tile, round)]
        return sum(items), len(items)

    def walk(
        self, reviewer: str, round: int, tile: str | None = None, step: int = 1
    ) -> Iterator[tuple[str, int, bool]]:
        """(tile, region, decided) of all items, from a tile on and round to it again; step -1 walks backwards."""
        order = list(self.tiles)[::step]
        start = order.index(tile) if tile in self.tiles.proposed else 0
        for stem in order[start:] + order[:start]:
            for region, decided in self.items(reviewer, stem, round)[::step]:
                yield stem, region, decided

    def labels(self, tile: str, cuts: Iterable[tuple[int, Piece]] = ()) -> np.ndarray:
        """(H,W) int32 numbers of the regions after the cuts, each a (number, piece) pair."""
        labels = self.tiles.labels(tile)
        for number, piece in cuts:
            labels[piece_mask(labels, piece)] = number
        return labels

    def labels_of(self, tile: str, view: View, merged: bool = False) -> np.ndarray:
        """(H,W) int32 as the reviewer of the view left it. merged: regions that are one have one number."""
        labels = self.labels(tile, [(cut.into, self.log.pieces[tile][cut.into]) for cut in view.cuts])
        if merged:
            for region in view.regions:
                if view.root(region) != region:
                    labels[labels == region] = view.root(region)
        return labels

    def proposed(self, tile: str, view: View, region: int) -> Proposed:
        """What a region, or the one that a piece comes from, was called."""
        return self.tiles.known(tile).get(view.origin(region), Proposed("", 0.0, ()))

    def decide(self, decision: Decision) -> Decision:
        """Check a decision and write it, unless the same one stands; the decision that stands.

        Raises:
            ValueError: what cannot be done, in words.
        """
        decision = replace(decision, name=None if decision.name is None else " ".join(decision.name.split()))
        if not decision.reviewer.strip():
            raise ValueError("a reviewer needs a name")
        view = self.view(decision.reviewer, decision.tile)
        self._check(decision, view)
        stands = view.last.get(decision.region)
        if stands is not None and stands.says() == decision.says() and stands.round == decision.round:
            return stands
        return self.log.append(decision, self.tiles.highest(decision.tile))

    def _check(self, decision: Decision, view: View) -> None:
        region, action = decision.region, decision.action
        if region == REST and region not in view.regions and action != "split":
            raise ValueError("that is the rest, which has no name: cut a region out of it with a box")
        if region not in view.regions and region != REST:
            raise ValueError(f"no region {region} in {decision.tile}: {', '.join(map(str, view.regions))}")
        if action in ("accept", "rename") and not decision.name:
            raise ValueError("no name: give the region one, or reject it")
        if action == "merge":
            if decision.into not in view.regions:
                known = ", ".join(str(r) for r in view.regions if r != region)
                raise ValueError(f"no region {decision.into} to merge with: {known}")
            if view.root(decision.into) == view.root(region):
                raise ValueError(f"{region} and {decision.into} are one region already")
        if action == "split":
            labels = self.labels_of(decision.tile, view)
            inside = piece_mask(labels, Piece(region, decision.box, decision.mask))
            if inside.sum() in (0, (labels == region).sum()):
                which = "nothing" if not inside.any() else "all"
                raise ValueError(f"the box {decision.box} holds {which} of region {region}: draw one across its edge")

    def undo(self, reviewer: str, round: int = 1) -> Decision | None:
        """Take back the reviewer's latest decision; which it was, or None where nothing is left."""
        self.log.refresh()
        history = self.log.history.get(reviewer)
        if not history:
            return None
        last = history[-1]
        self.log.append(Decision(last.tile, last.region, reviewer, "undo", round=round))
        return last

    def adopt(self, reviewer: str, other: str, tile: str, region: int, round: int) -> None:
        """Say of a region, and of the pieces cut out of it, what another reviewer said.

        Raises:
            ValueError: the other merged it into a piece that this reviewer does not have.
        """
        mine, theirs = self.view(reviewer, tile), self.view(other, tile)
        said = [d for d in (*theirs.cuts, *theirs.last.values()) if _within(theirs, d.region, region)]
        for decision in said:
            if decision.action == "merge" and not (decision.into in mine.regions or decision.into in theirs.last):
                raise ValueError(
                    f"{other} merged region {region} with {decision.into}, which is a piece of another one"
                )
        for decision in reversed(self.log.standing(tile, reviewer)):
            if _within(mine, decision.region, region):
                self.log.append(Decision(tile, decision.region, reviewer, "undo", round=round))
        for decision in said:
            self.log.append(replace(decision, reviewer=reviewer, round=round), self.tiles.highest(tile))


def _within(view: View, region: int, whole: int) -> bool:
    parents = {cut.into: cut.region for cut in view.cuts}
    while region != whole and region in parents:
        region = parents[region]
    return region == whole


def piece_mask(labels: np.ndarray, piece: Piece) -> np.ndarray:
    """bool (H,W): the pixels of `labels` that the piece takes from its region."""
    x0, y0, x1, y1 = piece.box
    inside = np.zeros(labels.shape, bool)
    inside[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = True
    if piece.mask is not None:
        inside &= rle_mask(piece.mask, labels.shape)
    return inside & (labels == piece.region)
