"""How well scores tell whether a class is in an image, and their calibration by logistic regression.

Shape letters: N cases (a word asked of an image), F scores per case.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import mannwhitneyu

BINS = 10


def area_under_curve(scores: np.ndarray, present: np.ndarray) -> float:
    """Area under the ROC curve: how often a case with the class has a higher score than a case without it.

    Args:
        scores: (N,). present: bool (N,).

    Returns:
        0..1; equal scores count half. NaN if all cases or no cases have the class.

    >>> area_under_curve(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
    0.875
    """
    yes, no = int(present.sum()), int((~present).sum())
    if not (yes and no):
        return float("nan")
    return float(mannwhitneyu(scores[present], scores[~present]).statistic / (yes * no))


def brier_score(probabilities: np.ndarray, present: np.ndarray) -> float:
    """Mean squared difference of the probabilities (N,) and the truth (N,), which is 0 or 1 (Brier, 1950)."""
    return float(np.mean((probabilities - present) ** 2))


def expected_calibration_error(probabilities: np.ndarray, present: np.ndarray, bins: int = BINS) -> float:
    """Mean over the cases of |mean probability - share of present| of the case's bin (Guo et al., ICML 2017).

    Args:
        probabilities: (N,), 0..1. present: bool (N,). bins: number of bins of equal width.

    >>> round(expected_calibration_error(np.array([0.01, 0.03, 0.99, 0.99]), np.array([False, False, True, False])), 4)
    0.255
    """
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.bincount(which, probabilities - present, bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def fit_logistic(scores: np.ndarray, present: np.ndarray, ridge: float = 1e-2) -> np.ndarray:
    """Fit a logistic regression.

    Args:
        scores: (N,F). present: bool (N,).
        ridge: weight of the squared factors in the loss, a sum over cases; keeps the factors finite if a threshold
            separates all cases.

    Returns:
        (F+1,): F factors, and the offset.

    Raises:
        ValueError: all cases or no cases have the class.
    """
    if present.all() or not present.any():
        raise ValueError("a calibration needs cases with the class and cases without it: use more images")

    def loss(factors: np.ndarray) -> float:
        logits = scores @ factors[:-1] + factors[-1]
        return np.logaddexp(0, np.where(present, -logits, logits)).sum() + ridge / 2 * (factors[:-1] ** 2).sum()

    return minimize(loss, np.zeros(scores.shape[1] + 1)).x


def probability(factors: Sequence[float], scores: np.ndarray) -> np.ndarray:
    """Probabilities (N,) of a logistic regression with F factors and an offset, for scores (N,F)."""
    *each, offset = factors
    return expit(scores @ np.array(each) + offset)


def cross_fitted(scores: np.ndarray, present: np.ndarray, first_half: np.ndarray) -> np.ndarray:
    """Probabilities (N,) of each half of the cases, from a logistic regression that was fitted on the other half.

    Args:
        scores: (N,F). present: bool (N,). first_half: bool (N,), the same for all cases of a scene.
    """
    found = np.empty(len(scores))
    for half in (first_half, ~first_half):
        found[half] = probability(fit_logistic(scores[~half], present[~half]), scores[half])
    return found
