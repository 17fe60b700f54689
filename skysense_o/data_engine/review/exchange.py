"""Exchange with other annotation programs: exports regions, and turns edited annotations into decisions."""

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
"""An imported polygon with at least this IoU to a region counts as this region, unchanged. (An export to polygons does
not preserve every pixel.)"""


@dataclass
class ExchangedRegion:
    """One region in an export or import.

    Attributes:
        mask: bool (H,W).
        name: class name, or UNNAMED.
        region: its region number; None if the other program dropped the number or the region is new.
        exact: whether the mask is exact to the pixel: true for run lengths, false for polygons.
        unread: the annotation's type if we cannot read it, else "". No decision is made on an unread region.
    """

    mask: np.ndarray
    name: str
    region: int | None = None
    exact: bool = True
    unread: str = ""


def exchanged_regions(review: Review, tile: str, reviewer: str | None) -> list[ExchangedRegion]:
    """The regions of a tile after a reviewer's decisions, without rejected regions; the proposed regions for None."""
    view = review.view(reviewer, tile) if reviewer else View.of(review.tiles.known(tile), [])
    labels = review.labels_of(tile, view, merged=True)
    regions = []
    for region in view.regions:
        last = view.last.get(region)
        if view.root(region) != region or (last is not None and last.action == "reject"):
            continue
        name = last.name if last is not None else review.proposed(tile, view, region).name
        regions.append(ExchangedRegion(labels == region, name or UNNAMED, region))
    return regions


def tile_of(review: Review, file: str) -> str | None:
    """The tile of an image that another program names by file name or URL; None if this review has no such tile."""
    stem = Path(str(file).replace("\\", "/").rsplit("=", 1)[-1]).stem
    return stem if stem in review.tiles.proposed else None


def take_over(
    review: Review, reviewer: str, tile: str, annotations: Sequence[ExchangedRegion], round: int = 1
) -> Counter:
    """Write the decisions that turn a reviewer's view of a tile into the given annotations.

    If an annotation covers a part of a region to which it does not belong, this part is split off and merged into the
    region of the annotation, or becomes a new region. Pixels in no annotation are rejected. Where annotations overlap,
    the smaller annotation gets the pixels.

    Args:
        review: the review.
        reviewer: name of the reviewer to whom the decisions are attributed.
        tile: the tile.
        annotations: the new regions of the tile.
        round: the review round of the decisions.

    Returns:
        number of decisions per action.
    """
    undecided = {one.region for one in annotations if one.unread}
    annotations = [one for one in annotations if not one.unread]
    view = review.view(reviewer, tile)
    labels = review.labels_of(tile, view)
    homes = _match(review.labels_of(tile, view, merged=True), view, annotations)
    painted = _paint(labels.shape, annotations)
    counts: Counter = Counter()

    def decide(region: int, action: str, **fields) -> Decision:
        before = len(review.log.history[reviewer])
        decision = review.decide(Decision(tile, region, reviewer, action, round=round, **fields))
        counts[action] += len(review.log.history[reviewer]) - before
        return decision

    parts: list[tuple[int, int]] = []  # (region, index in annotations or -1)
    for region in np.unique(labels).tolist():
        if view.root(region) in undecided:
            continue
        inside = labels == region
        owners = Counter(painted[inside].tolist())
        keeps = -1 if region == REST and REST not in view.regions else _keeper(owners, homes, view.root(region))
        parts.append((region, keeps))
        for owner in sorted(owners):
            if owner != keeps:
                mask = inside & (painted == owner)
                cut = decide(region, "split", box=box_from_mask(mask), mask=rle_of(mask)["counts"])
                parts.append((cut.into, owner))
    members: dict[int, list[int]] = {}
    for region, owner in parts:
        members.setdefault(owner, []).append(region)
    for region in members.pop(-1, []):
        if region != REST or REST in view.regions:
            decide(region, "reject")
    for owner, regions in members.items():
        target = homes[owner] if homes.get(owner) in regions else regions[0]
        name = annotations[owner].name
        if name != UNNAMED:
            proposed = review.proposed(tile, review.view(reviewer, tile), target).name
            decide(target, "accept" if name == proposed else "rename", name=name)
        for region in regions:
            if region != target and review.view(reviewer, tile).root(region) != target:
                decide(region, "merge", into=target)
    return counts


def _match(labels: np.ndarray, view: View, annotations: Sequence[ExchangedRegion]) -> dict[int, int]:
    """Match annotations to regions, one to one: by region number, else by the highest IoU of at least 0.5.

    A polygon with an IoU of at least SAME_IOU is replaced by its region's mask.

    Returns:
        index in annotations -> region.
    """
    scores = []
    for k, one in enumerate(annotations):
        for region in np.unique(labels[one.mask]).tolist():
            if region in view.regions:
                here = labels == region
                iou = (here & one.mask).sum() / (here | one.mask).sum()
                scores.append((one.region == region, iou, k, region))
    homes: dict[int, int] = {}
    for named, iou, k, region in sorted(scores, reverse=True):
        if k not in homes and region not in homes.values() and (named or iou >= 0.5):
            homes[k] = region
            if not annotations[k].exact and iou >= SAME_IOU:
                annotations[k].mask = labels == region
    return homes


def _paint(size: tuple[int, ...], annotations: Sequence[ExchangedRegion]) -> np.ndarray:
    """int32 (H,W), the index of each pixel's annotation, -1 for none."""
    painted = np.full(size, -1, np.int32)
    for k in sorted(range(len(annotations)), key=lambda k: -int(annotations[k].mask.sum())):
        painted[annotations[k].mask] = k
    return painted


def _keeper(owners: Counter, homes: dict[int, int], root: int) -> int:
    """The annotation that keeps the region's number: the matched annotation, else the one that covers most of it."""
    own = [owner for owner in owners if homes.get(owner) == root]
    return own[0] if own else owners.most_common(1)[0][0]
