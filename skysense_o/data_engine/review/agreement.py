"""How far reviewers agree, beyond what chance would give.

Cohen, A coefficient of agreement for nominal scales, 1960: two reviewers. Krippendorff, Computing Krippendorff's
alpha-reliability, 2011, nominal data: any number of them, not all of whom need have seen everything.
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
    """1 for full agreement, 0 for what chance gives; nan with no pairs, or where both only ever said one same thing."""
    n = len(first)
    if not n:
        return NAN
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    left, right = Counter(first), Counter(second)
    expected = sum(left[label] * right[label] for label in left) / n**2
    return NAN if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Iterable[Sequence]) -> float:
    """1 for full agreement, 0 for what chance gives.

    Args:
        units: for each thing judged, the labels that those who judged it gave. Those of fewer than two are left out.

    Returns:
        nan where no unit has two labels, or all labels are the same.
    """
    counts = [Counter(unit) for unit in units if len(unit) > 1]
    totals = sum(counts, Counter())
    n = totals.total()
    differ = sum(_pairs_that_differ(unit) / (unit.total() - 1) for unit in counts)
    expected = _pairs_that_differ(totals)
    return 1 - (n - 1) * differ / expected if expected else NAN


def _pairs_that_differ(labels: Counter) -> int:
    return labels.total() ** 2 - sum(count**2 for count in labels.values())


@dataclass(frozen=True)
class Agreement:
    """pairs: (reviewer, reviewer, regions both decided, kappa). alpha: of all reviewers. disagreements: (tile, region,
    what each said).
    """

    pairs: list[tuple[str, str, int, float]]
    alpha: float
    disagreements: list[tuple[str, int, dict[str, Verdict]]]

    def text(self, most: int = 50) -> str:
        """For people: a table, a line, and the first `most` disagreements."""
        if not self.pairs:
            return "One reviewer so far: agreement needs two."
        head = ("reviewer", "and", "both decided", "kappa")
        lines = [tabulate(self.pairs, head, tablefmt="github", floatfmt=".3f")]
        lines += ["", f"Kappa is Cohen's. Krippendorff's alpha of all: {self.alpha:.3f}", ""]
        lines += [f"Regions that reviewers disagree on now: {len(self.disagreements)}"]
        for tile, region, said in self.disagreements[:most]:
            lines.append(f"- {tile}, region {region}: " + "; ".join(f"{who}: {what}" for who, what in said.items()))
        if len(self.disagreements) > most:
            lines.append(f"- and {len(self.disagreements) - most} more")
        return "\n".join(lines)


def agreement(review: Review, rounds: int = 1) -> Agreement:
    """Kappa and alpha of the decisions up to round `rounds` (1: made alone); disagreements of all as they stand."""
    said = [votes for tile in list(review.log.lines) for votes in _known(review, tile, rounds).values()]
    reviewers = sorted({reviewer for votes in said for reviewer in votes})
    pairs = []
    for a, b in combinations(reviewers, 2):
        both = [(votes[a], votes[b]) for votes in said if a in votes and b in votes]
        pairs.append((a, b, len(both), cohen_kappa([x for x, _ in both], [y for _, y in both])))
    differ = [
        (tile, region, votes)
        for tile in sorted(review.log.lines)
        for region, votes in sorted(_known(review, tile, None).items())
        if len(set(votes.values())) > 1
    ]
    return Agreement(pairs, krippendorff_alpha([list(votes.values()) for votes in said]), differ)


def _known(review: Review, tile: str, rounds: int | None) -> Mapping[int, dict[str, Verdict]]:
    return review.verdicts(tile, rounds) if tile in review.tiles.proposed else {}
