"""Tests of box average precision on cases with a known result."""

from __future__ import annotations

import json
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
    # One ship is found with an IoU of 0.6 (above three of the ten thresholds: 0.5, 0.55, 0.6), one is missed, and one
    # false alarm has a lower score; no car is predicted. Recall reaches 0.5, that is 51 of the 101 recall points.
    results = [box(1, [10, 10, 20, 12], 0.9), box(1, [80, 0, 5, 5], 0.5)]
    scores = box_average_precision(TRUTH, results)
    assert scores["per_class"]["ship"] == pytest.approx(0.3 * 51 / 101)
    assert scores["AP50"] == pytest.approx((51 / 101 + 0) / 2)
    first = [box(1, [80, 0, 5, 5], 0.95), results[0]]
    assert box_average_precision(TRUTH, first)["AP50"] == pytest.approx((51 / 101 / 2 + 0) / 2)


def test_nothing_found_is_zero_and_unknown_ids_are_errors():
    assert box_average_precision(TRUTH, [])["AP"] == 0
    with pytest.raises(ValueError, match="results have category_id .7., which the annotations do not have"):
        box_average_precision(TRUTH, [box(7, [0, 0, 1, 1], 1)])


def test_the_command_reads_both_files_and_prints_the_metrics(call, tmp_path):
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(TRUTH))
    results.write_text(json.dumps([box(a["category_id"], a["bbox"], 0.9) for a in TRUTH["annotations"][:2]]))
    code, out, err = call("tools/evaluate_boxes.py", truth, results)
    assert code == 0, err
    table = dict(line.rsplit(maxsplit=1) for line in out.splitlines()[2:])
    assert table["AP"] == "0.5000", "ships have an AP of 1 and cars an AP of 0, so the mean is 0.5"
    assert table["AP ship"] == "1.0000"
    code, out, _ = call("tools/evaluate_boxes.py", truth, results, "--json")
    assert json.loads(out)["per_class"]["car"] == 0


@pytest.mark.parametrize(
    ("truth", "results", "says"),
    [
        (None, "[]", "no file at"),
        ("{", "[]", "truth.json is not JSON"),
        ("[]", "[]", "truth.json is not a COCO annotation file"),
        (json.dumps(TRUTH), "{}", "results.json is not a COCO result file"),
        (json.dumps(TRUTH), '[{"image_id": 1, "bbox": [0, 0, 1, 1]}]', "box 0 has no category_id, score"),
    ],
)
def test_wrong_files_are_errors_of_one_line(call, tmp_path, truth, results, says):
    if truth is not None:
        (tmp_path / "truth.json").write_text(truth)
    (tmp_path / "results.json").write_text(results)
    code, _, err = call("tools/evaluate_boxes.py", tmp_path / "truth.json", tmp_path / "results.json")
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
