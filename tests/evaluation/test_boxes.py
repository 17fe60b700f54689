"""Average precision of boxes: closed-form cases."""

from __future__ import annotations

import math

import pytest

from skysense_o.evaluation.boxes import box_average_precision

TRUTH = {
    "images": [{"id": 1, "height": 100, "width": 100}],
    "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "car"}, {"id": 3, "name": "crane"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]},
        {"image_id": 1, "category_id": 1, "bbox": [50, 50, 20, 20]},
        {"image_id": 1, "category_id": 2, "bbox": [10, 60, 40, 30]},
    ],
}


def box(category, bbox, score):
    return {"image_id": 1, "category_id": category, "bbox": bbox, "score": score}


def test_perfect_boxes_have_one_and_missing_classes_none():
    results = [box(a["category_id"], a["bbox"], 0.9) for a in TRUTH["annotations"]]
    scores = box_average_precision(TRUTH, results)
    assert scores["AP"] == scores["AP50"] == scores["AP75"] == 1
    assert scores["per_class"]["ship"] == 1
    assert math.isnan(scores["per_class"]["crane"])
    assert math.isnan(scores["AP_large"])


def test_overlap_order_and_misses_count():
    # A ship of overlap 0.6 (three of ten thresholds: 0.5, 0.55, 0.6), one never found, after a false alarm of less
    # score; no car. Recall reaches 0.5, of 101 points 51.
    results = [box(1, [10, 10, 20, 12], 0.9), box(1, [80, 0, 5, 5], 0.5)]
    scores = box_average_precision(TRUTH, results)
    assert scores["per_class"]["ship"] == pytest.approx(0.3 * 51 / 101)
    assert scores["AP50"] == pytest.approx((51 / 101 + 0) / 2)
    first = [box(1, [80, 0, 5, 5], 0.95), results[0]]
    assert box_average_precision(TRUTH, first)["AP50"] == pytest.approx((51 / 101 / 2 + 0) / 2)


def test_nothing_found_is_zero_and_unknown_ids_are_errors():
    assert box_average_precision(TRUTH, [])["AP"] == 0
    with pytest.raises(ValueError, match="results have category_id .7., which the truth does not have"):
        box_average_precision(TRUTH, [box(7, [0, 0, 1, 1], 1)])
