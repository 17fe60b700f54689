"""Tests of tools/compare_results.py, which compares the numbers in RESULTS.md with new measurements."""

from __future__ import annotations

import json

import pytest

TABLE = """# Results
<!-- recomputed: begin -->
| run | data set | number | % |
|-----|----------|--------|---|
| all | dubai_val | mIoU | 50.00 |
| all | ucm_captions_test | image_R@10 | 70.00 |
| native | dubai_val | mIoU | 51.00 |
<!-- recomputed: end -->
The end.
"""


@pytest.fixture
def measured(tmp_path):
    (tmp_path / "RESULTS.md").write_text(TABLE)
    (tmp_path / "out/all").mkdir(parents=True)

    def write(miou: float) -> tuple:
        results = [
            {"data_set": "dubai_val", "task": "segmentation", "numbers": {"mIoU": miou, "fwIoU": None, "other": 1.0}},
            {"data_set": "ucm_captions_test", "task": "image-text", "numbers": {"image_R@10": 0.7}},
        ]
        (tmp_path / "out/all/results.json").write_text(json.dumps({"results": results}))
        return ("tools/compare_results.py", tmp_path / "out", "--results", tmp_path / "RESULTS.md")

    return write


def test_numbers_that_agree(call, measured):
    code, out, _ = call(*measured(0.5012))
    assert code == 0
    assert "3 numbers: 0 differ by more than 0.3, 1 not run" in out


def test_a_number_that_differs_is_told(call, measured):
    code, out, _ = call(*measured(0.49))
    assert code == 1
    assert "-1.00" in out
    assert "DIFFERS" in out
    assert call(*measured(0.49), "--tolerance", "2")[0] == 0


def test_the_table_is_written_anew(call, measured, tmp_path):
    assert call(*measured(0.49), "--write")[0] == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert "49.00" in text
    assert "51.00" not in text
    assert text.endswith("The end.\n")
    code, out, _ = call(*measured(0.49))
    assert code == 0
    assert "2 numbers: 0 differ" in out


def test_nothing_to_compare(call, tmp_path):
    code, _, err = call("tools/compare_results.py", tmp_path)
    assert code == 2
    assert "run tools/reproduce.sh first" in err
