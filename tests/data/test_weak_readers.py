"""Tests of the readers of boxes, points, marked objects, outlines and scene classes, and of check_dataset.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import weak_trees as trees

from skysense_o.data import weak_records
from skysense_o.data.catalog import records_of, spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.concepts import load_concepts
from skysense_o.data.partial_labels import shapes_say
from skysense_o.data.weak.shapes import shape_labels
from skysense_o.sample import NO, UNKNOWN, YES

CHECK = "tools/check_dataset.py"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def test_boxes_are_corners_and_an_id_of_our_class_table(data):
    trees.vehicles(data)
    folders = load_classes("vehicles").folders
    one, two = records_of("simd_train")
    assert Path(one["file_name"]).name == "1.png"
    assert one["boxes"] == [[10, 10, 22, 18, folders.index("car")], [30, 30, 54, 50, folders.index("airliner")]]
    assert [box[:4] for box in two["boxes"]] == [[4, 40, 14, 46]]
    assert [Path(r["file_name"]).name for r in records_of("simd_val")] == ["10.png"], (
        "images whose id is a multiple of 10 belong to the validation split"
    )


def test_an_image_without_boxes_is_kept_and_a_missing_image_is_an_error(data):
    folder = trees.vehicles(data)
    body = json.loads((folder / "boxes.json").read_text())
    body["annotations"] = body["annotations"][:2]
    (folder / "boxes.json").write_text(json.dumps(body))
    assert [len(r["boxes"]) for r in records_of("simd_train")] == [2, 0]
    (folder / "images/2.png").unlink()
    with pytest.raises(FileNotFoundError, match="2.png is missing"):
        records_of("simd_train")
    assert len(records_of("simd_train", skip_bad=True)) == 1


def test_an_unknown_category_is_an_error(data):
    folder = trees.vehicles(data)
    body = json.loads((folder / "boxes.json").read_text())
    body["categories"].append({"id": 9, "name": "submarine"})
    (folder / "boxes.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match=r"has the categories \['submarine'\], but datasets/classes/vehicles.json has"):
        records_of("simd_train")


def test_points_are_read_by_split(data):
    trees.trees(data)
    one, two = records_of("urban_trees_train")
    assert one["points"] == [[10, 12, 0], [50, 40, 0]]
    assert two["points"] == []
    assert len(records_of("urban_trees_test")) == 1


def test_listed_scenes_without_a_class_are_left_out(data):
    folder = trees.rsicd(data)
    table = load_classes("rsicd")
    assert [table.folders[r["label"]] for r in records_of("rsicd_scenes_train")] == ["farmland", "forest", "airport"]
    trees.write_lines(folder / "captions.jsonl", [{"image": "images/0.png", "split": "train", "class": "moon base"}])
    with pytest.raises(ValueError, match="line 1 has 'moon base', which is not in datasets/classes/rsicd.json"):
        records_of("rsicd_scenes_train")


def test_class_folders_are_read_by_split(data):
    trees.scenes12(data)
    names = load_classes("scenes12").classes
    assert [names[r["label"]] for r in records_of("resisc12_train")] == ["lake"]
    assert [names[r["label"]] for r in records_of("resisc12_test")] == ["lake", "mountain"]


def test_point_records_keep_the_class_of_their_scene(data, tmp_path, monkeypatch):
    monkeypatch.setattr(weak_records, "CLASSES_FOLDER", tmp_path / "datasets/classes")
    (tmp_path / "datasets/points").mkdir(parents=True)
    lines = [
        {"image": "harbor/harbor00", "what": "boat", "points": [[9.5, 20], [50, 40]]},
        {"image": "harbor/harbor00", "what": "seagull", "points": [[1, 1]]},
    ]
    trees.write_lines(tmp_path / "datasets/points/ucmerced.jsonl", lines)
    trees.image(data / "ucmerced/images/harbor/harbor00.jpg", (60, 90, 120))
    boat = load_classes("ucmerced_marks").classes.index("boat")
    (record,) = records_of("ucmerced_marks_train")
    assert record["points"] == [[9.5, 20, boat], [50, 40, boat]]
    assert (record["what"], record["kind"]) == ("boat", "ucmerced/harbor")


@pytest.fixture
def outlined(data, monkeypatch) -> Path:
    monkeypatch.setattr(weak_records, "CLASSES_FOLDER", data / "datasets/classes")
    trees.shapes(data)
    return data


def test_shapes_of_an_image_are_one_record(outlined):
    at = load_classes("ucmerced_shapes").classes.index
    beach, tanks = records_of("ucmerced_shapes_train")
    assert [(s["class"], s["margin"], len(s["polygons"])) for s in beach["shapes"]] == [
        (at("sea"), 1, 1),
        (at("beach"), 3, 1),
    ]
    assert (beach["complete"], beach["kind"]) == ([at("sea")], "ucmerced/beach")
    assert tanks["shapes"][0]["circles"] == [[20, 30, 10], [60, 60, 9]]
    assert (tanks["complete"], tanks["kind"]) == ([at("storage tank")], "ucmerced/storage tanks")


def test_outlines_get_the_scene_class_that_another_file_lists(data, monkeypatch):
    """captions.jsonl has the scene classes of RSICD. Outlined water in an image of a river is a river."""
    monkeypatch.setattr(weak_records, "CLASSES_FOLDER", data / "project" / "classes")
    shape = {"class": "water", "complete": False, "polygons": [[[2, 2], [30, 2], [30, 30], [2, 30]]]}
    (data / "project" / "shapes").mkdir(parents=True)
    for stem in ("river_1", "port_1", "00001"):
        trees.image(data / "rsicd" / "images" / f"{stem}.jpg", (60, 90, 120))
    trees.write_lines(
        data / "project" / "shapes" / "rsicd_land.jsonl",
        [{"image": stem, **shape} for stem in ("river_1", "port_1", "00001")],
    )
    listed = [("river_1", "river"), ("port_1", "port"), ("00001", None)]
    lines = [{"image": f"images/{stem}.jpg", "split": "train", "class": name} for stem, name in listed]
    trees.write_lines(data / "rsicd" / "captions.jsonl", lines)
    records = records_of("rsicd_land_train")
    assert [r["kind"] for r in records] == ["rsicd/river", "rsicd/port", None]
    concepts, water = load_concepts(), load_classes("land_shapes").classes.index("water")
    river, lake = concepts.index("river"), concepts.index("lake")
    assert [shapes_say(r)[water, river] for r in records] == [YES, UNKNOWN, UNKNOWN]
    assert [shapes_say(r)[water, lake] for r in records] == [NO, NO, UNKNOWN]


def test_an_unknown_scene_class_of_outlines_is_named(data, monkeypatch):
    monkeypatch.setattr(weak_records, "CLASSES_FOLDER", data / "project" / "classes")
    (data / "project" / "shapes").mkdir(parents=True)
    (data / "rsicd").mkdir()
    shape = {"class": "water", "complete": True, "polygons": []}
    trees.write_lines(data / "project" / "shapes" / "rsicd_land.jsonl", [{"image": "a_1", **shape}])
    trees.write_lines(data / "rsicd" / "captions.jsonl", [{"image": "a_1.jpg", "split": "train", "class": "moon base"}])
    with pytest.raises(ValueError, match="line 1 has 'moon base', which is not in datasets/classes/rsicd.json"):
        records_of("rsicd_land_train")
    trees.write_lines(data / "rsicd" / "captions.jsonl", [{"image": "b_1.jpg", "split": "train", "class": "river"}])
    with pytest.raises(ValueError, match="captions.jsonl does not list a_1: get the whole file"):
        records_of("rsicd_land_train")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"class": "moon base"},
            "'moon base' is not a class of datasets/classes/ucmerced_shapes.json, which has tennis",
        ),
        ({"polygons": [[[1, 1], [9, 9]]]}, "has 2 points: at least 3 are needed"),
        ({"polygons": [], "complete": False}, "has neither polygons nor circles"),
        ({"circles": [[9, 9, 0]]}, r"the circle \[9, 9, 0\] \(x, y, radius\) needs a radius above 0"),
    ],
)
def test_mistakes_in_shapes_are_named(outlined, change, told):
    trees.shapes(outlined, [{**trees.SHAPES[0], **change}])
    with pytest.raises(ValueError, match=r"ucmerced.jsonl, line 1 \(beach/beach00\).*" + told):
        records_of("ucmerced_shapes_train")


def test_the_annotated_shapes_are_sound(monkeypatch, data):
    """Every outline in this project's annotation file for UC Merced is valid; the test does not need the images."""
    monkeypatch.setattr(weak_records, "_record", lambda spec, file, **what: {"file_name": str(file), **what})
    records = list(weak_records.read_shapes(spec_of("ucmerced_shapes"), "train"))
    count = len(load_classes("ucmerced_shapes"))
    for record in records:
        labels = shape_labels((256, 256), record["shapes"], count)
        for shape in record["shapes"]:
            assert (labels == shape["class"]).sum() > 40, record["file_name"]
            numbers = [n for p in shape["polygons"] for point in p for n in point]
            assert all(0 <= n <= 260 and 2 * n == int(2 * n) for n in numbers), record["file_name"]


def test_splits_are_chosen_by_globs(data):
    trees.roads(data)
    assert [Path(r["file_name"]).stem for r in records_of("epfl_roads_val")] == ["img_5"]
    assert [Path(r["file_name"]).stem for r in records_of("epfl_roads_train")] == ["img_1"]


def test_check_counts_boxes_and_finds_those_outside(data, call):
    folder = trees.vehicles(data)
    code, said, err = call(CHECK, "simd_train")
    assert code == 0, said + err
    assert any(line.split()[0] == "car" and line.split()[-1] == "2" for line in said.splitlines() if line), said
    body = json.loads((folder / "boxes.json").read_text())
    body["annotations"][0]["bbox"] = [60, 10, 12, 8]
    body["annotations"][1]["bbox"] = [30, 30, 0, 20]
    (folder / "boxes.json").write_text(json.dumps(body))
    code, said, _ = call(CHECK, "simd_train")
    assert code == 1
    assert "1.png: the box of car [60, 10, 72, 18] is not inside the image of 64 x 64" in said
    assert "1.png: the box of airliner [30, 30, 30, 50] has no area" in said


def test_check_finds_points_outside(data, call):
    folder = trees.trees(data)
    assert call(CHECK, "urban_trees_train")[0] == 0
    line = {"image": "images/0.png", "split": "train", "tree": [[10, 64], [3, 3]]}
    trees.write_lines(folder / "points.jsonl", [line])
    code, said, _ = call(CHECK, "urban_trees_train")
    assert code == 1
    assert "0.png: the point of tree [10, 64] is not inside the image of 64 x 64" in said


def test_check_counts_shapes_and_finds_those_outside(outlined, call):
    code, said, err = call(CHECK, "ucmerced_shapes_train")
    assert code == 0, said + err
    assert any(line.startswith("storage tank") and line.split()[-1] == "1" for line in said.splitlines()), said
    lines = [{**trees.SHAPES[0], "polygons": [[[0, 0], [65, 0], [9, 9]]], "circles": [[70, 10, 5], [66, 10, 5]]}]
    trees.shapes(outlined, lines)
    code, said, _ = call(CHECK, "ucmerced_shapes_train")
    assert code == 1
    assert "beach00.jpg: the polygon of sea [[0, 0], [65, 0], [9, 9]] is not inside the image of 64 x 64" in said
    assert "the circle of sea [70, 10, 5] is not inside" in said
    assert "[66, 10, 5]" not in said, "a circle that is partly inside the image must not be reported"


def test_the_contact_sheet_draws_boxes_points_and_shapes(outlined, call, tmp_path):
    trees.vehicles(outlined)
    trees.trees(outlined)
    for name in ("simd_train", "urban_trees_train", "ucmerced_shapes_train"):
        sheet = tmp_path / f"{name}.png"
        code, said, err = call("tools/visualize_data.py", name, "--output", sheet, "--count", "2")
        assert code == 0, err
        assert sheet.is_file()
        assert str(sheet) in said
