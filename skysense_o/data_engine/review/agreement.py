"""Chance-corrected agreement between reviewers.

The agreement of two reviewers is Cohen's kappa (Cohen, A coefficient of agreement for nominal scales, 1960). The
agreement of any number of reviewers, who need not have decided on all regions, is Krippendorff's alpha for nominal data
(Krippendorff, Computing Krippendorff's alpha-reliability, 2011).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tabulate import tabulate

from skysense_o.data_engine.review.session import Review, Verdict

NAN = float("nan")


def cohen_kappa(first: Sequence, second: Sequence) -> float:
    """Cohen's kappa of two reviewers: 1 for full agreement, 0 for the agreement expected by chance.

    Args:
        first: labels of one reviewer.
        second: labels of the other reviewer for the same items.

    Returns:
        kappa; NaN if there are no items, or if both reviewers gave one and the same label to all items.
    """
    n = len(first)
    if not n:
        return NAN
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    left, right = Counter(first), Counter(second)
    expected = sum(left[label] * right[label] for label in left) / n**2
    return NAN if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Iterable[Sequence]) -> float:
    """Krippendorff's alpha: 1 for full agreement, 0 for the agreement expected by chance.

    Args:
        units: for each item, its labels. Items with fewer than two labels are ignored.

    Returns:
        alpha; NaN if no item has two labels, or all labels are the same.
    """
    counts = [Counter(unit) for unit in units if len(unit) > 1]
    totals = sum(counts, Counter())
    n = totals.total()
    differ = sum(_different_pairs(unit) / (unit.total() - 1) for unit in counts)
    expected = _different_pairs(totals)
    return 1 - (n - 1) * differ / expected if expected else NAN


def _different_pairs(labels: Counter) -> int:
    return labels.total() ** 2 - sum(count**2 for count in labels.values())


@dataclass(frozen=True)
class Agreement:
    """How well the decisions of all reviewers agree.

    Attributes:
        pairs: (reviewer, reviewer, number of regions on which both decided, kappa).
        alpha: Krippendorff's alpha of all reviewers.
        disagreements: (tile, region, reviewer -> verdict).
    """

    pairs: list[tuple[str, str, int, float]]
    alpha: float
    disagreements: list[tuple[str, int, dict[str, Verdict]]]

    def text(self, most: int = 50) -> str:
        """A report in Markdown, with at most `most` disagreements."""
        if not self.pairs:
            return "Only one reviewer so far: agreement needs two."
        head = ("reviewer", "and", "both decided", "kappa")
        lines = [tabulate(self.pairs, head, tablefmt="github", floatfmt=".3f")]
        lines += ["", f"Kappa is Cohen's. Krippendorff's alpha of all reviewers: {self.alpha:.3f}", ""]
        lines += [f"Regions that reviewers disagree on now: {len(self.disagreements)}"]
        for tile, region, verdicts in self.disagreements[:most]:
            lines.append(f"- {tile}, region {region}: " + "; ".join(f"{who}: {v}" for who, v in verdicts.items()))
        if len(self.disagreements) > most:
            lines.append(f"- and {len(self.disagreements) - most} more")
        return "\n".join(lines)


def agreement(review: Review, rounds: int = 1) -> Agreement:
    """Compute kappa and alpha over the decisions of the first `rounds` rounds, and list the current disagreements.

    Only in round 1 do reviewers work independently; in later rounds they see each other's decisions.
    """
    units = [votes for tile in list(review.log.lines) for votes in _verdicts(review, tile, rounds).values()]
    reviewers = sorted({reviewer for votes in units for reviewer in votes})
    pairs = []
    for a, b in combinations(reviewers, 2):
        both = [(votes[a], votes[b]) for votes in units if a in votes and b in votes]
        pairs.append((a, b, len(both), cohen_kappa([x for x, _ in both], [y for _, y in both])))
    differ = [
        (tile, region, votes)
        for tile in sorted(review.log.lines)
        for region, votes in sorted(_verdicts(review, tile, None).items())
        if len(set(votes.values())) > 1
    ]
    return Agreement(pairs, krippendorff_alpha([list(votes.values()) for votes in units]), differ)


def _verdicts(review: Review, tile: str, rounds: int | None) -> Mapping[int, dict[str, Verdict]]:
    return review.verdicts(tile, rounds) if tile in review.tiles.proposed else {}
