"""Regions as annotations of other programs, and what was changed there as decisions here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skysense_o.clicks import box_from_mask
from skysense_o.data_engine.review.log import Decision
from skysense_o.data_engine.review.masks import rle_of
from skysense_o.data_engine.review.session import REST, Review, View

UNNAMED = "unnamed"
SAME_IOU = 0.9
"""From which on a polygon is held to be the region it was drawn from: polygons do not keep every pixel."""


@dataclass
class ExchangedRegion:
    """mask: bool (H,W). name: UNNAMED where it has none. region: its number here, None where the program lost it or it
    is new. exact: the mask has every pixel, as run lengths do and polygons do not.
    """

    mask: np.ndarray
    name: str
    region: int | None = None
    exact: bool = True


def exchanged_regions(review: Review, tile: str, reviewer: str | None) -> list[ExchangedRegion]:
    """What a tile's regions are to a reviewer, without those rejected; as proposed where there is no reviewer."""
    view = review.view(reviewer, tile) if reviewer else View.of(review.tiles.known(tile), [])
    labels = review.labels_of(tile, view, merged=True)
    found = []
    for region in view.regions:
        last = view.last.get(region)
        if view.root(region) != region or (last is not None and last.action == "reject"):
            continue
        name = last.name if last is not None else review.proposed(tile, view, region).name
        found.append(ExchangedRegion(labels == region, name or UNNAMED, region))
    return found


def tile_of(review: Review, file: str) -> str | None:
    """The tile that an image's name or address in another program means; None where it is none of ours."""
    stem = Path(str(file).replace("\\", "/").rsplit("=", 1)[-1]).stem
    return stem if stem in review.tiles.proposed else None


def take_over(review: Review, reviewer: str, tile: str, given: Sequence[ExchangedRegion], round: int = 1) -> Counter:
    """Say in `reviewer`'s name what turns their view of a tile into the annotations; how often which action was needed.

    Each part of a region that lies in another annotation is cut out and merged into that one's region, or made one;
    what is in none is rejected. Where annotations overlap the smaller one has the pixels.
    """
    view = review.view(reviewer, tile)
    labels = review.labels_of(tile, view)
    homes = _match(review.labels_of(tile, view, merged=True), view, given)
    painted = _paint(labels.shape, given)
    done: Counter = Counter()

    def say(region: int, action: str, **what) -> Decision:
        before = len(review.log.history[reviewer])
        found = review.decide(Decision(tile, region, reviewer, action, round=round, **what))
        done[action] += len(review.log.history[reviewer]) - before
        return found

    parts: list[tuple[int, int]] = []  # (region, index in given or -1)
    for region in np.unique(labels).tolist():
        inside = labels == region
        owners = Counter(painted[inside].tolist())
        keeps = -1 if region == REST and REST not in view.regions else _keeper(owners, homes, view.root(region))
        parts.append((region, keeps))
        for owner in sorted(owners):
            if owner != keeps:
                mask = inside & (painted == owner)
                cut = say(region, "split", box=box_from_mask(mask), mask=rle_of(mask)["counts"])
                parts.append((cut.into, owner))
    members: dict[int, list[int]] = {}
    for region, owner in parts:
        members.setdefault(owner, []).append(region)
    for region in members.pop(-1, []):
        if region != REST or REST in view.regions:
            say(region, "reject")
    for owner, regions in members.items():
        target = homes[owner] if homes.get(owner) in regions else regions[0]
        name = given[owner].name
        if name != UNNAMED:
            known = review.proposed(tile, review.view(reviewer, tile), target).name
            say(target, "accept" if name == known else "rename", name=name)
        for region in regions:
            if region != target and review.view(reviewer, tile).root(region) != target:
                say(region, "merge", into=target)
    return done


def _match(labels: np.ndarray, view: View, given: Sequence[ExchangedRegion]) -> dict[int, int]:
    """index in given -> region: by its number where it came back, else the region it covers best, by half at least.

    A polygon that is as good as its region gets the region's mask.
    """
    scores = []
    for k, one in enumerate(given):
        for region in np.unique(labels[one.mask]).tolist():
            if region in view.regions:
                here = labels == region
                iou = (here & one.mask).sum() / (here | one.mask).sum()
                scores.append((one.region == region, iou, k, region))
    homes: dict[int, int] = {}
    for named, iou, k, region in sorted(scores, reverse=True):
        if k not in homes and region not in homes.values() and (named or iou >= 0.5):
            homes[k] = region
            if not given[k].exact and iou >= SAME_IOU:
                given[k].mask = labels == region
    return homes


def _paint(size: tuple[int, ...], given: Sequence[ExchangedRegion]) -> np.ndarray:
    """(H,W) index of the annotation each pixel is in, -1 for none."""
    painted = np.full(size, -1, np.int32)
    for k in sorted(range(len(given)), key=lambda k: -int(given[k].mask.sum())):
        painted[given[k].mask] = k
    return painted


def _keeper(owners: Counter, homes: dict[int, int], root: int) -> int:
    """The annotation that a region stays with: its own, or the one with most of its pixels."""
    own = [owner for owner in owners if homes.get(owner) == root]
    return own[0] if own else owners.most_common(1)[0][0]
