"""Writes the majority decisions as review/final/<tile>.png and .json, which step "publish" reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from skysense_o.data_engine.review.session import REST, Review, Verdict
from skysense_o.data_engine.work_folder import write_json, write_map


@dataclass
class Finished:
    """What `finish` wrote.

    Attributes:
        tiles: number of tiles written.
        kept: number of regions that the majority named.
        rejected: number of regions that the majority rejected.
        open: (tile, region, reason) for regions without a majority decision; their pixels stay unlabelled.
    """

    tiles: int = 0
    kept: int = 0
    rejected: int = 0
    open: list[tuple[str, int, str]] = field(default_factory=list)


def finish(review: Review) -> Finished:
    """Write the majority decisions for each tile that has any decision. A tie leaves the region open.

    The PNG is uint16, 0 for unlabelled pixels. The JSON lists {"region", "name", "confidence", "candidates"}; the
    confidence is the share of the region's reviewers who made the winning decision.
    """
    folder, done = review.work / "review" / "final", Finished()
    for tile in review.tiles:
        votes = review.verdicts(tile)
        if not any(votes.values()):
            for suffix in (".png", ".json"):  # an earlier call wrote them; all decisions have been undone since
                (folder / f"{tile}{suffix}").unlink(missing_ok=True)
            continue
        labels, rows = _final(review, tile, votes, done)
        write_map(folder / f"{tile}.png", labels)
        write_json(folder / f"{tile}.json", rows)
        done.tiles += 1
    return done


def _final(review: Review, tile: str, votes: dict[int, dict[str, Verdict]], done: Finished):
    winners = {region: _winner(list(verdicts.values())) for region, verdicts in votes.items()}
    labels, present = _cut(review, tile, votes, winners)
    out, rows = np.zeros(labels.shape, np.uint16), []
    highest = max(present, default=0)
    for region in present:
        won = winners.get(region)
        if won is None:
            done.open.append((tile, region, "reviewers disagree" if votes.get(region) else "nobody decided"))
        elif won.name is None:
            done.rejected += 1
        elif any(other not in present or not _same(won, winners.get(other)) for other in won.group):
            done.open.append((tile, region, f"no majority to merge {', '.join(map(str, won.group))}"))
        else:
            number = won.group[0] or highest + 1  # pixels of no region (0) that are labelled get a new number
            out[labels == region] = number
            if region == won.group[0]:
                rows.append(_row(number, won, list(votes[region].values())))
                done.kept += 1
    return out, rows


def _winner(verdicts: list[Verdict]) -> Verdict | None:
    """The most frequent verdict; None without verdicts or on a tie."""
    ranked = Counter(verdicts).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _same(won: Verdict, other: Verdict | None) -> bool:
    return other is not None and (won.name, won.group) == (other.name, other.group)


def _cut(review: Review, tile: str, votes: dict, winners: dict) -> tuple[np.ndarray, list[int]]:
    """Apply the splits that have a majority; return the labels and the region numbers after these splits.

    A piece that was split off from the pixels of no region needs no majority: it exists if anybody decided on it.
    """
    present = list(review.tiles.known(tile))
    cuts = []
    for number, piece in sorted(review.log.pieces[tile].items()):
        parent = winners.get(piece.region)
        apply = parent is not None and number in parent.cuts
        if piece.region == REST and REST not in present:
            apply = bool(votes.get(number))
        if apply and piece.region in (REST, *present):
            present.append(number)
            cuts.append((number, piece))
    return review.labels(tile, cuts), present


def _row(number: int, won: Verdict, verdicts: list[Verdict]) -> dict:
    names = Counter(verdict.name for verdict in verdicts if verdict.name is not None)
    return {
        "region": number,
        "name": won.name,
        "confidence": round(verdicts.count(won) / len(verdicts), 4),
        "candidates": [[name, round(count / len(verdicts), 4)] for name, count in names.most_common(5)],
    }
