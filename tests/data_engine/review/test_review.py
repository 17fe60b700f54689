"""Tests of reviewing: the decision log, each reviewer's view, agreement between reviewers, and the final files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from review_work import BOXES, command

from skysense_o.data_engine.review.agreement import agreement, cohen_kappa, krippendorff_alpha
from skysense_o.data_engine.review.finish import finish
from skysense_o.data_engine.review.log import Decision, DecisionLog
from skysense_o.data_engine.review.session import Review, Verdict, View
from skysense_o.data_engine.review.steps import CHOOSE, MERGE, SPLIT, ReviewActions, ReviewPosition


@pytest.fixture
def say(review, tile):
    """Return a function that records a decision on the first tile: say("ann", 1, "rename", name="river")."""

    def decide(reviewer: str, region: int, action: str, **what) -> Decision:
        return review.decide(Decision(tile, region, reviewer, action, **what))

    return decide


# --- the log ---


def test_the_log_file_contains_the_whole_state(review, say, tile, work):
    say("ann", 1, "accept", name="building")
    say("ann", 2, "reject")
    again = Review(work)
    assert again.log.history == review.log.history
    lines = [json.loads(line) for line in review.log.path.read_text().splitlines()]
    assert set(lines[0]) == {
        "tile", "region", "reviewer", "action", "name", "into", "box", "time", "mask", "round",
    }  # fmt: skip
    assert [(line["region"], line["action"], line["name"]) for line in lines] == [
        (1, "accept", "building"),
        (2, "reject", None),
    ]


def test_an_incomplete_last_line_is_reported_and_skipped(review, say, work):
    say("ann", 1, "accept", name="building")
    with open(review.log.path, "ab") as file:
        file.write(b'{"tile": "town0_0000')
    reopened = DecisionLog(work)
    assert ["line 2, is skipped" in line for line in reopened.bad] == [True]
    say("ann", 2, "reject")
    reopened.refresh()
    assert [d.region for d in reopened.history["ann"]] == [1, 2]


def test_lines_that_are_not_decisions_are_reported(review, work, capsys):
    review.log.path.parent.mkdir()
    review.log.path.write_text('[1]\n{"tile": "a", "region": 1, "reviewer": "b", "action": "eat"}\n')
    command(work, "--agreement")
    assert "unknown action 'eat': choose one of accept, rename" in capsys.readouterr().err
    assert len(Review(work).log.bad) == 2


WRITER = """
import sys
from pathlib import Path
from skysense_o.data_engine.review.log import Decision, DecisionLog
log = DecisionLog(Path(sys.argv[1]))
for k in range(int(sys.argv[3])):
    done = log.append(Decision("town", 1, sys.argv[2], "split", box=(k, 0, k + 1, ord(sys.argv[2][0]))), 3)
    print(done.into, flush=True)
"""


def writer(work, name: str, count: int) -> subprocess.Popen:
    words = [sys.executable, "-c", WRITER, str(work), name, str(count)]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def test_two_processes_can_write_at_once(work):
    programs = [writer(work, name, 60) for name in ("ann", "bob")]
    outputs = [program.communicate(timeout=60)[0].split() for program in programs]
    log = DecisionLog(work)
    assert log.bad == []
    assert [len(log.history[name]) for name in ("ann", "bob")] == [60, 60]
    assert sorted(map(int, outputs[0] + outputs[1])) == list(range(4, 124)), (
        "each region made by a split must have its own number"
    )


def test_returned_decisions_are_in_the_file_after_a_kill(work):
    program = writer(work, "ann", 1_000_000)
    seen = [int(program.stdout.readline()) for _ in range(30)]
    os.kill(program.pid, signal.SIGKILL)
    seen += map(int, program.communicate()[0].splitlines())
    assert set(seen) <= {d.into for d in DecisionLog(work).history["ann"]}


def test_undo_removes_the_latest_decision_and_is_a_line_itself(review, say, tile):
    say("ann", 1, "accept", name="building")
    say("ann", 1, "rename", name="shed")
    say("bob", 1, "reject")
    assert review.undo("ann").name == "shed"
    assert review.view("ann", tile).last[1].name == "building"
    assert review.view("bob", tile).last[1].action == "reject"
    assert review.undo("ann").name == "building"
    assert review.undo("ann") is None
    assert len(review.log.path.read_text().splitlines()) == 5


def test_repeating_a_decision_adds_no_line(review, say):
    say("ann", 1, "rename", name="  a  shed ")
    say("ann", 1, "rename", name="a shed")
    assert [d.name for d in review.log.history["ann"]] == ["a shed"]


@pytest.mark.parametrize(
    ("region", "action", "what", "match"),
    [
        (9, "reject", {}, "no region 9 in town0_00000000; its regions are 1, 2, 3"),
        (0, "reject", {}, "these pixels are in no region: split a region off with a box first"),
        (1, "rename", {"name": "  "}, "no name: name the region, or reject it"),
        (1, "merge", {"into": 7}, "no region 7 to merge with; choose one of 2, 3"),
        (1, "merge", {"into": 1}, "1 and 1 are merged already"),
        (1, "split", {"box": (0, 0, 50, 40)}, "contains all of region 1: draw one that contains a part of it"),
        (1, "split", {"box": (60, 0, 70, 40)}, "contains nothing of region 1"),
    ],
)
def test_impossible_decisions_raise_an_error(say, review, region, action, what, match):
    with pytest.raises(ValueError, match=match):
        say("ann", region, action, **what)
    with pytest.raises(ValueError, match="a reviewer needs a name"):
        say(" ", 1, "reject")
    with pytest.raises(ValueError, match="'elsewhere' is not one of the 2 tiles with regions"):
        review.decide(Decision("elsewhere", 1, "ann", "reject"))


# --- one reviewer's view, and the verdict of the majority ---


def test_a_split_makes_a_region_until_it_is_undone(review, say, tile):
    cut = say("ann", 1, "split", box=(0, 0, 20, 100))
    assert cut.into == 4
    view = review.view("ann", tile)
    assert view.regions == (1, 2, 3, 4)
    labels = review.labels_of(tile, view)
    assert (labels == 4).sum() == 20 * 40
    assert (labels == 1).sum() == 30 * 40
    say("ann", 4, "rename", name="shed")
    inner = say("ann", 4, "split", box=(0, 0, 10, 100))
    assert review.view("ann", tile).last == {}, "splitting a region must remove the decision about it"
    assert review.proposed(tile, review.view("ann", tile), inner.into).name == "building"
    for _ in range(3):
        review.undo("ann")
    assert review.view("ann", tile).regions == (1, 2, 3)
    assert say("bob", 1, "split", box=(0, 0, 20, 100)).into == 4, (
        "regions made by equal splits must have the same number"
    )
    assert say("bob", 2, "split", box=(60, 0, 70, 100)).into == 6


def test_the_direction_of_a_merge_does_not_change_the_verdict(review, say, tile):
    say("ann", 1, "merge", into=2)
    assert review.view("ann", tile).verdicts() == {}, "the merged region is undecided"
    say("ann", 2, "accept", name="water")
    say("bob", 2, "merge", into=1)
    say("bob", 1, "rename", name="water")
    votes = review.verdicts(tile)
    one = Verdict("water", (1, 2), ())
    assert votes == {1: {"ann": one, "bob": one}, 2: {"ann": one, "bob": one}, 3: {}}
    assert str(one) == "water (merged: 1, 2)"


def test_a_cycle_of_merges_gives_no_verdict():
    circle = [Decision("t", 1, "ann", "merge", into=2), Decision("t", 2, "ann", "merge", into=1)]
    assert View.of([1, 2], circle).verdicts() == {}


def test_round_two_shows_disagreements_and_undecided_regions(review, say, tile):
    other = list(review.tiles)[1]
    say("ann", 1, "accept", name="building")
    say("bob", 1, "accept", name="building")
    say("ann", 2, "accept", name="water")
    say("bob", 2, "rename", name="river")
    assert [region for stem, region, _ in review.walk("ann", 2) if stem == tile] == [2, 3]
    assert [region for stem, region, _ in review.walk("ann", 2) if stem == other] == [1, 2, 3]
    assert review.progress("ann", 2) == (0, 5)
    say("ann", 2, "rename", name="river", round=2)
    assert review.items("ann", tile, 2) == [(2, True), (3, False)]
    assert review.items("bob", tile, 2) == [(3, False)]
    assert agreement(review).pairs[0][2:] == (2, pytest.approx(1 / 3)), (
        "kappa must be computed from the decisions of round 1"
    )
    assert agreement(review).disagreements == []


def test_another_reviewers_decisions_are_adopted_with_their_splits(review, say, tile):
    say("ann", 1, "split", box=(0, 0, 20, 100))
    say("ann", 1, "accept", name="building")
    say("ann", 4, "rename", name="shed")
    say("bob", 1, "reject")
    review.adopt("bob", "ann", tile, 1, 2)
    assert review.view("bob", tile).verdicts() == review.view("ann", tile).verdicts()
    assert review.view("bob", tile, 1).verdicts() == {1: Verdict(None, (1,), ())}, (
        "adopting a decision in round 2 must not change round 1"
    )
    review.adopt("ann", "bob", tile, 2, 2)
    say("carl", 2, "merge", into=3)
    cut = say("carl", 3, "split", box=(0, 0, 20, 100))
    say("carl", 2, "merge", into=cut.into)
    with pytest.raises(ValueError, match=f"carl merged region 2 with {cut.into}, which is a piece of another region"):
        review.adopt("bob", "carl", tile, 2, 2)


# --- agreement, compared with values computed by hand or printed in the sources ---


def test_cohens_kappa():
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)  # observed agreement 0.7, expected by chance 0.5
    assert cohen_kappa("ab", "ab") == 1
    assert cohen_kappa("ab", "ba") == -1
    assert np.isnan(cohen_kappa("", ""))
    assert np.isnan(cohen_kappa("aa", "aa"))


def test_krippendorffs_alpha():
    rows = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[label for label in column if label != "."] for column in zip(*rows, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)  # example C of the source
    assert krippendorff_alpha(zip("0100000010", "1110010000")) == pytest.approx(0.095, abs=5e-4)  # example A
    assert krippendorff_alpha(zip("aabbdcccedda", "babbbccceddd")) == pytest.approx(0.692, abs=5e-4)  # example B
    assert np.isnan(krippendorff_alpha(["a", "b"]))
    assert np.isnan(krippendorff_alpha(["aa", "aa"]))


def test_agreement_report_lists_disagreements(review, say, work, capsys):
    say("ann", 1, "accept", name="building")
    assert agreement(review).text() == "Only one reviewer so far: agreement needs two."
    say("bob", 1, "rename", name="shed")
    say("ann", 2, "reject")
    say("bob", 2, "reject")
    command(work, "--agreement")
    output = capsys.readouterr().out
    assert "ann        | bob" in output
    assert "Regions that reviewers disagree on now: 1" in output
    assert "- town0_00000000, region 1: ann: building; bob: shed" in output


# --- finish ---


def read_final(work, tile):
    with Image.open(work / "review/final" / f"{tile}.png") as file:
        labels = np.array(file)
    return labels, json.loads((work / "review/final" / f"{tile}.json").read_text())


def test_finish_writes_majority_decisions_with_merges_and_splits(review, say, tile, work, capsys):
    for who in ("ann", "bob", "carl"):
        say(who, 1, "split", box=(0, 0, 20, 100))
        say(who, 1, "merge", into=2)
        say(who, 2, "accept", name="water")
        say(who, 4, "rename", name="shed" if who != "carl" else "car")
        say(who, 3, "reject")
    command(work, "--finish")
    assert "1 tiles: 2 regions named, 1 rejected" in capsys.readouterr().out
    labels, rows = read_final(work, tile)
    assert labels.dtype == np.uint16
    assert {row["region"]: row["name"] for row in rows} == {1: "water", 4: "shed"}
    assert rows[1]["confidence"] == pytest.approx(2 / 3, abs=1e-4)
    assert rows[1]["candidates"] == [["shed", 0.6667], ["car", 0.3333]]
    assert np.array_equal(labels == 4, mask_of((0, 0, 20, 40)))
    assert np.array_equal(labels == 1, mask_of((20, 0, 120, 40)))
    assert not labels[40:].any(), "rejected pixels and pixels without a region must be unlabelled"


def mask_of(box):
    x0, y0, x1, y1 = box
    mask = np.zeros((80, 120), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_finish_leaves_out_and_reports_ties_and_undecided_regions(review, say, tile, work, capsys):
    say("ann", 1, "accept", name="building")
    say("bob", 1, "rename", name="shed")
    say("ann", 2, "accept", name="water")
    command(work, "--finish")
    output = capsys.readouterr().out
    assert f"{tile}, region 1: reviewers disagree" in output
    assert f"{tile}, region 3: nobody decided" in output
    labels, rows = read_final(work, tile)
    assert [row["region"] for row in rows] == [2]
    assert set(np.unique(labels)) == {0, 2}
    assert not (work / "review/final" / f"{list(review.tiles)[1]}.png").exists(), (
        "a tile without decisions must have no final labels"
    )
    for who in ("ann", "bob", "ann"):
        review.undo(who)
    finish(review)
    assert list((work / "review/final").iterdir()) == []


def test_a_merge_without_majority_is_not_applied(review, say, tile):
    say("ann", 1, "merge", into=2)
    say("ann", 2, "accept", name="water")
    say("bob", 2, "accept", name="water")
    say("carl", 2, "accept", name="water")
    done = finish(review)
    assert (tile, 1, "no majority to merge 1, 2") in done.open
    assert done.kept == 1


def test_a_region_is_split_off_from_the_rest(review, say, tile, work):
    cut = say("ann", 0, "split", box=(100, 70, 120, 80))
    say("ann", cut.into, "rename", name="car")
    finish(review)
    labels, rows = read_final(work, tile)
    assert [(row["region"], row["name"]) for row in rows] == [(4, "car")]
    assert np.array_equal(labels == 4, mask_of((100, 72, 120, 80)))


def test_a_named_rest_gets_a_region_number(work, tile):
    path = work / "names" / f"{tile}.json"
    rest = {"region": 0, "name": "land", "confidence": 0.6, "candidates": []}
    path.write_text(json.dumps([*json.loads(path.read_text()), rest]))
    review = Review(work)
    review.decide(Decision(tile, 0, "ann", "accept", name="land"))
    review.decide(Decision(tile, 1, "ann", "reject"))
    finish(review)
    labels, rows = read_final(work, tile)
    assert [(row["region"], row["name"]) for row in rows] == [(4, "land")]
    assert np.array_equal(labels == 4, mask_of((0, 72, 120, 80))), (
        "rejected regions must not become part of the named remaining area"
    )


# --- actions of one reviewer ---


def test_actions_go_through_all_regions(review, tile):
    actions = ReviewActions(review, ["Car park"])
    position, _ = actions.begin(" ann ")
    assert (position.reviewer, position.tile, position.region) == ("ann", tile, 1)
    position, message = actions.accept(position)
    assert message == "Saved: region 1 is building."
    assert ReviewPosition.read(str(position)) == position
    position, _ = actions.rename(position, "car park")
    assert review.log.history["ann"][-1].name == "Car park", (
        "a new name must take the spelling of a known name that differs only in case"
    )
    position, _ = actions.merge(position, 2)
    assert position.tile != tile
    assert actions.previous(position)[0].region == 3
    position, message = actions.choose(position, "road  0.30")
    assert message == "Saved: region 1 is road."
    with pytest.raises(ValueError, match="'gone  0.30' is no longer a choice"):
        actions.choose(position, "gone  0.30")
    position, _ = actions.reject(position)
    position, message = actions.accept(position)
    assert message == "Saved: region 3 is tree. Nothing is left to decide in round 1."
    position, message = actions.undo(position)
    assert (position.region, message) == (3, "Undone: accept of region 3.")


def test_clicks_and_typed_text(review, tile):
    actions = ReviewActions(review)
    position, _ = actions.begin("ann")
    assert actions.click(position, CHOOSE, 60, 10)[0].region == 2
    assert actions.enter(position, CHOOSE, "3")[0].region == 3
    corner, message = actions.click(position, SPLIT, 19, 79)
    assert message == "Now the opposite corner."
    after, message = actions.click(corner, SPLIT, 0, 0)
    assert message == "Saved: region 4 is cut out of 1."
    assert after.corner is None
    assert review.log.history["ann"][-1].box == (0, 0, 20, 80)
    after, message = actions.enter(after, SPLIT, "20, 0, 30 40")
    assert message == "Saved: region 5 is cut out of 1."
    _, message = actions.click(after, MERGE, 60, 10)
    assert message == "Saved: region 1 is part of 2."
    for mode, text, match in (
        (SPLIT, "1 2 3", "'1 2 3' is not x0 y0 x1 y1"),
        (MERGE, "two", "'two' is not the number of a region"),
        (CHOOSE, "77", "no region 77 in"),
    ):
        with pytest.raises(ValueError, match=match):
            actions.enter(after, mode, text)


def test_later_rounds_offer_the_other_reviewers_verdicts(review, say, tile):
    say("ann", 1, "accept", name="building")
    say("bob", 1, "rename", name="shed")
    actions = ReviewActions(review)
    position, _ = actions.begin("ann", 2)
    assert position.region == 1
    assert actions.choices(position) == ["as bob: shed", "building  0.80", "road  0.30"]
    actions.choose(position, "as bob: shed")
    assert agreement(review).disagreements == []


# --- the command ---


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--export", "coco"], "--export FORMAT and --to FILE go together"),
        (["--round", "0"], "--round 0 is out of range"),
    ],
)
def test_wrong_options_raise_an_error(work, words, match):
    with pytest.raises(ValueError, match=match):
        command(work, *words)


def test_a_folder_without_regions_raises_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no regions to review: make them with python tools/data_engine.py"):
        command(tmp_path)


def test_the_image_highlights_the_current_region(review, tile):
    from skysense_o.data_engine.review.drawing import draw_regions
    from skysense_o.inference.drawing import REGION_COLOR

    labels = review.tiles.labels(tile)
    image = np.array(draw_regions(review.tiles.image(tile), labels, 2, {1}, (5, 5)))
    assert image.shape == (640, 960, 3)
    yellow = (image == REGION_COLOR).all(2)
    x0, y0, _, y1 = (8 * value for value in BOXES[2])
    assert yellow[y0 + 20 : y1 - 20, x0 - 4 : x0 + 4].any(1).all(), (
        "the left edge of the current region must be highlighted"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"reviewer": 3}, "'reviewer' is 3: it must be text"),
        ({"name": 7}, "'name' is 7: it must be text or null"),
        ({"region": "1"}, "'region' is \"1\": it must be a whole number"),
        ({"region": True}, "'region' is true"),
        ({"tile": None}, "'tile' is null"),
        ({"action": "split", "into": 9}, "a split needs 'box'"),
        ({"box": [1, 2, 3]}, "a split needs 'box', four whole numbers"),
        ({"mood": 1}, "unknown keys mood"),
    ],
)
def test_a_decision_of_the_wrong_shape_is_skipped_and_told(work, tile, change, match):
    good = {"tile": tile, "region": 1, "reviewer": "ann", "action": "accept", "name": "building"}
    path = work / "review" / "decisions.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({**good, **change}), json.dumps(good), "[" * 200_000, "3", "null"]
    path.write_text("".join(line + "\n" for line in lines))
    log = DecisionLog(work)
    assert [d.name for d in log.history["ann"]] == ["building"]
    assert len(log.bad) == 4
    assert match in log.bad[0]


def test_the_log_is_read_on_a_full_disk_with_a_torn_last_line(work, tile, monkeypatch):
    import io

    good = {"tile": tile, "region": 1, "reviewer": "ann", "action": "accept", "name": "building"}
    log = DecisionLog(work)

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    file = Full(json.dumps(good).encode() + b"\n" + b'{"tile": "to')
    log._read(file)
    assert [d.name for d in log.history["ann"]] == ["building"]
    assert log.bad == []
