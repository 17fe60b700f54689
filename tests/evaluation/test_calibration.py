"""Tests of AUC, Brier score, calibration error and logistic regression against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from skysense_o.evaluation.calibration import (
    area_under_curve,
    brier_score,
    cross_fitted,
    expected_calibration_error,
    fit_logistic,
    probability,
)


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    scores, present = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[present] for b in scores[~present]]
    assert area_under_curve(scores, present) == pytest.approx(np.mean(pairs))
    assert np.isnan(area_under_curve(scores, np.ones(40, bool)))


def test_a_forecast_of_one_half_for_everything():
    """Half of the cases are present: calibrated (ECE 0), but useless (AUC 0.5), with a Brier score of 1/4."""
    p, present = np.full(8, 0.5), np.arange(8) % 2 == 0
    assert expected_calibration_error(p, present) == pytest.approx(0)
    assert brier_score(p, present) == pytest.approx(0.25)
    assert area_under_curve(p, present) == 0.5


def test_too_sure_by_a_fifth():
    p, present = np.array([1.0] * 5 + [0.0] * 5), np.array([True] * 4 + [False] * 6)
    assert expected_calibration_error(p, present) == pytest.approx((5 * 0.2 + 5 * 0) / 10)
    assert brier_score(p, present) == pytest.approx(0.1)


def drawn(n: int, factors: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return N cases whose probability is known: scores (N,F) and whether the class is present."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (n, len(factors) - 1))
    return scores, rng.random(n) < probability(factors, scores)


def test_the_fit_finds_the_factors_that_the_cases_were_drawn_with():
    scores, present = drawn(20000, (0.8, -0.5, 1.0), 0)
    assert fit_logistic(scores, present) == pytest.approx([0.8, -0.5, 1.0], abs=0.06)


def test_cases_that_a_threshold_separates_give_finite_factors():
    factors = fit_logistic(np.array([[-3.0], [-2.0], [2.0], [3.0]]), np.array([False, False, True, True]))
    assert np.isfinite(factors).all()
    assert (np.round(probability(factors, np.array([[-2.5], [2.5]])))).tolist() == [0, 1]


def test_without_absent_cases_there_is_nothing_to_fit():
    with pytest.raises(ValueError, match="needs cases with the class and cases without it: use more images"):
        fit_logistic(np.ones((3, 1)), np.ones(3, bool))


def test_scores_that_are_too_sure_become_calibrated_and_keep_their_order():
    scores, present = drawn(4000, (0.3, -1.0), 1)
    before = probability([1.0, 0.0], scores)
    after = cross_fitted(scores, present, np.arange(4000) < 2000)
    assert expected_calibration_error(before, present) > 0.15
    assert expected_calibration_error(after, present) < 0.03
    assert area_under_curve(after[:2000], present[:2000]) == area_under_curve(before[:2000], present[:2000])


def test_no_half_is_fitted_on_itself():
    """In the second half the score means the opposite, so each half gets the wrong sign from the other."""
    scores, present = drawn(2000, (1.0, 0.0), 2)
    first = np.arange(2000) < 1000
    present[~first] = ~present[~first]
    found = cross_fitted(scores, present, first)
    assert area_under_curve(found[first], present[first]) < 0.4
    assert area_under_curve(found[~first], present[~first]) < 0.4
