"""Tests of exporting regions to Label Studio and COCO, and of importing edited annotations as decisions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from review_work import HEIGHT, WIDTH, command

from skysense_o.data_engine.review.coco import from_coco, to_coco
from skysense_o.data_engine.review.exchange import exchanged_regions
from skysense_o.data_engine.review.finish import finish
from skysense_o.data_engine.review.label_studio import from_label_studio, pack_brush, to_label_studio, unpack_brush
from skysense_o.data_engine.review.log import Decision, DecisionLog
from skysense_o.data_engine.review.masks import polygons_mask, rle_mask, rle_of
from skysense_o.data_engine.review.session import Review, piece_mask


def decisions_of(work, reviewer: str) -> dict[tuple[str, int], tuple]:
    """Return {(tile, region): (action, name, into)} for the reviewer's decisions that are in force."""
    review = Review(work)
    views = {tile: review.view(reviewer, tile) for tile in review.tiles}
    return {(t, r): (d.action, d.name, d.into) for t, view in views.items() for r, d in view.last.items()}


def mask_of(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_coco_import_renames_deletes_and_adds_regions(work, tile, tmp_path, capsys):
    file = tmp_path / "regions.json"
    command(work, "--export", "coco", "--to", file)
    data = json.loads(file.read_text())
    assert [c["name"] for c in data["categories"]] == ["building", "tree", "water"]
    assert [(a["region"], a["bbox"], a["area"]) for a in data["annotations"][:2]] == [
        (1, [0, 0, 50, 40], 2000),
        (2, [50, 0, 70, 40], 2800),
    ]
    coco = COCO()
    coco.dataset = data
    coco.createIndex()
    assert np.array_equal(coco.annToMask(data["annotations"][1]), mask_of(50, 0, 120, 40)), (
        "COCO's own reader must decode the same mask"
    )
    data["categories"].append({"id": 9, "name": "car"})
    of_tile = [a for a in data["annotations"] if a["image_id"] == 1]
    # Region 1 is renamed, 2 is deleted, and a new one covers pixels of region 3 and pixels without a region.
    of_tile[0]["category_id"] = 9
    del of_tile[0]["region"]  # some programs drop keys that are not part of COCO
    new = {
        "id": 77,
        "image_id": 1,
        "category_id": 9,
        "iscrowd": 0,
        "segmentation": [[100, 60, 120, 60, 120, 80, 100, 80]],
    }
    data["annotations"] = [of_tile[0], of_tile[2], new]
    file.write_text(json.dumps(data))
    command(work, "--import", file, "--reviewer", "cvat")
    output = capsys.readouterr().out
    assert "1 tiles of 2, by cvat: 1 accept, 1 merge, 1 reject, 2 rename, 2 split" in output
    assert "1 tiles have no annotations in the file; nothing was decided on them" in output
    stands = decisions_of(work, "cvat")
    assert stands[tile, 1] == ("rename", "car", None)
    assert stands[tile, 2] == ("reject", None, None)
    assert stands[tile, 3] == ("accept", "tree", None)
    finish(Review(work))
    labels, rows = final(work, tile)
    assert {row["name"] for row in rows} == {"car", "tree"}
    new = {row["region"] for row in rows} - {1, 3}
    assert np.array_equal(np.isin(labels, list(new)), mask_of(100, 60, 120, 80))
    lines = len(Review(work).log.path.read_text().splitlines())
    command(work, "--import", file, "--reviewer", "cvat")
    assert "by cvat: nothing new" in capsys.readouterr().out
    assert len(Review(work).log.path.read_text().splitlines()) == lines


def final(work, tile):
    with Image.open(work / "review/final" / f"{tile}.png") as file:
        labels = np.array(file)
    return labels, json.loads((work / "review/final" / f"{tile}.json").read_text())


def test_export_and_import_of_a_reviewers_regions_changes_nothing(review, work, tile, tmp_path):
    for region, action, what in (
        (1, "split", {"box": (0, 0, 20, 100)}),
        (1, "merge", {"into": 2}),
        (2, "rename", {"name": "river"}),
        (4, "accept", {"name": "building"}),
        (3, "reject", {}),
    ):
        review.decide(Decision(tile, region, "ann", action, **what))
    before = review.verdicts(tile)
    for form in ("coco", "label-studio"):
        file = tmp_path / f"{form}.json"
        command(work, "--export", form, "--to", file, "--reviewer", "ann")
        if form == "label-studio":
            finished(file, who="ann")
            who = "label-studio ann"
        else:
            who = "dan"
        command(work, "--import", file, "--reviewer", "dan")
        back = Review(work)
        assert [(a.name, a.mask.sum()) for a in exchanged_regions(back, tile, who)] == [
            ("river", 4000),
            ("building", 800),
        ]
        for mine, theirs in zip(exchanged_regions(review, tile, "ann"), exchanged_regions(back, tile, who)):
            assert np.array_equal(mine.mask, theirs.mask)
    assert {r: votes["ann"] for r, votes in Review(work).verdicts(tile).items() if "ann" in votes} == {
        r: votes["ann"] for r, votes in before.items() if "ann" in votes
    }


def finished(file, who, change=lambda tile, results: results):
    """Rewrite exported predictions as annotations, edited by `change`, in Label Studio's JSON export format."""
    tasks = json.loads(file.read_text())
    for task in tasks:
        results = change(task["data"]["tile"], task.pop("predictions")[0]["result"])
        task["annotations"] = [{"completed_by": who, "was_cancelled": False, "result": results}]
    file.write_text(json.dumps(tasks))


def test_label_studio_import_renames_deletes_and_adds_regions(work, tile, tmp_path):
    file = tmp_path / "tasks.json"
    command(work, "--export", "label-studio", "--to", file)
    config = (tmp_path / "tasks.xml").read_text()
    assert '<Label value="water"/>' in config
    assert "<BrushLabels" in config

    def change(stem, results):
        if stem != tile:
            return results
        results[0]["value"]["brushlabels"] = ["shed"]
        results[0]["id"] = "x7Gk2"  # Label Studio may give new ids
        box = {"x": 75, "y": 50, "width": 25, "height": 20, "rotation": 0, "rectanglelabels": ["car"]}
        new = {"id": "aB3", "type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT, "value": box}
        return [results[0], results[2], new, {"id": "aB4", "type": "choices", "value": {"choices": ["odd"]}}]

    finished(file, {"id": 3, "email": "eve@example.org"}, change)
    command(work, "--import", file)
    stands = decisions_of(work, "label-studio eve@example.org")
    assert stands[tile, 1] == ("rename", "shed", None)
    assert stands[tile, 2] == ("reject", None, None)
    assert stands[tile, 3] == ("accept", "tree", None)
    assert stands[tile, 4] == ("rename", "car", None)
    view = Review(work).view("label-studio eve@example.org", tile)
    labels = Review(work).labels_of(tile, view)
    assert np.array_equal(labels == 4, mask_of(90, 40, 120, 56))
    assert stands[list(Review(work).tiles)[1], 2] == ("accept", "water", None)


def test_a_polygon_close_to_its_region_keeps_the_regions_mask(review, work, tile, tmp_path):
    data = to_coco(review)
    del data["annotations"][1:]
    data["annotations"][0]["segmentation"] = [[0, 0, 49.2, 0.4, 49.5, 40, 0.3, 39.6]]
    file = tmp_path / "polygons.json"
    file.write_text(json.dumps(data))
    command(work, "--import", file)
    stands = decisions_of(work, "coco")
    assert stands == {
        (tile, 1): ("accept", "building", None),
        (tile, 2): ("reject", None, None),
        (tile, 3): ("reject", None, None),
    }


def test_a_redrawn_mask_moves_pixels_between_regions(review, work, tile, tmp_path):
    data = to_coco(review)
    of_tile = [a for a in data["annotations"] if a["image_id"] == 1]
    # The new mask is wider, so it covers pixels of region 2, and less high.
    of_tile[0]["segmentation"] = rle_of(mask_of(0, 0, 60, 30))
    of_tile[1]["segmentation"] = rle_of(mask_of(60, 0, 120, 40))
    data["annotations"] = of_tile
    file = tmp_path / "redrawn.json"
    file.write_text(json.dumps(data))
    command(work, "--import", file)
    back = {a.name: a.mask for a in exchanged_regions(Review(work), tile, "coco")}
    assert np.array_equal(back["building"], mask_of(0, 0, 60, 30))
    assert np.array_equal(back["water"], mask_of(60, 0, 120, 40))
    finish(Review(work))
    assert not final(work, tile)[0][30:40, :50].any(), "pixels that a redrawn mask no longer covers must be unlabelled"


def test_all_formats_of_coco_masks_are_read(review, tile):
    mask = mask_of(0, 0, 50, 40)
    runs = [0, *[40] * 99, 80 * 120 - 99 * 40]
    image = {"id": 1, "file_name": f"C:\\images\\{tile}.png"}
    data = {"images": [image, {"id": 2, "file_name": "other.png"}], "categories": [{"id": 1, "name": "shed"}]}
    forms = [rle_of(mask), {"size": [HEIGHT, WIDTH], "counts": runs}, [[0, 0, 50, 0, 50, 40, 0, 40]]]
    rows = [{"id": k, "image_id": 1, "category_id": 1, "segmentation": form} for k, form in enumerate(forms)]
    data["annotations"] = [*rows, {**rows[0], "image_id": 2}]
    imported = from_coco(review, data)
    assert list(imported) == [tile]
    for one in imported[tile]:
        assert np.array_equal(one.mask, mask)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"segmentation": {"counts": "91"}}, "annotation 1: run lengths of 10 pixels do not make a mask of 120 x 80"),
        ({"segmentation": {"counts": [9600, -1, 1]}}, "annotation 1: run lengths of 9600 pixels do not make a mask"),
        ({"segmentation": {"counts": [9600, "a"]}}, 'annotation 1: a run length is "a": it must be a whole number'),
        ({"segmentation": {"counts": "P" * 99}}, "annotation 1: run lengths hold 'P', which is not COCO's compressed"),
        ({"segmentation": {"size": [1, 1]}}, "annotation 1: the segmentation has no 'counts'"),
        ({"segmentation": [[1, 1, 5, 5]]}, "annotation 1: a polygon has 4 numbers: expected 6 or more"),
        ({"segmentation": [[1, 1, 9, 1, 9, 9, 3]]}, "annotation 1: a polygon has 7 numbers"),
        ({"segmentation": [[1, 1, 9, float("nan"), 9, 9]]}, "annotation 1: a coordinate of a polygon is NaN"),
        ({"segmentation": [[1, 1, 9, float("inf"), 9, 9]]}, "annotation 1: a coordinate of a polygon is Infinity"),
        (
            {"segmentation": [[1, 1, 9, 1e30, 9, 9]]},
            "annotation 1: a polygon reaches 1e[+]30 pixels: expected at most 100,000",
        ),
        ({"segmentation": [[1, 1, 9, None, 9, 9]]}, "annotation 1: a coordinate of a polygon is null"),
        ({"segmentation": [[500, 500, 600, 500, 600, 600]]}, "annotation 1: its mask covers no pixel"),
        ({"segmentation": "all"}, "annotation 1: 'segmentation' is \"all\": it must be a list or an object or null"),
        ({"segmentation": None, "bbox": [1, 2]}, "annotation 1: it has neither polygons nor run lengths, nor a box"),
        ({"category_id": 8}, "annotation 1 has category 8, which the file does not list"),
        ({"image_id": 77}, "annotation 1 has image 77, which the file does not list"),
        (
            {"segmentation": {"size": [120, 80], "counts": [9, 9591]}},
            r"its mask has the size .120, 80., and its tile .80",
        ),
        ({"category_id": [1]}, "annotation 1: 'category_id' is a list of 1: it must be a whole number or text"),
        ({"image_id": {}}, "annotation 1: 'image_id' is an object of 0"),
        ({"region": "x"}, "annotation 1: 'region' is \"x\": it must be a whole number or null"),
    ],
)
def test_errors_in_a_coco_file(review, change, match):
    data = to_coco(review)
    data["annotations"][0].update(change)
    with pytest.raises(ValueError, match=match):
        from_coco(review, data)


def test_ids_of_coco_may_be_numbers_here_and_text_there(review, tile):
    """Regression: COCO annotations with strings as ids used to be taken as regions that the reviewer had deleted."""
    data = to_coco(review)
    for row in data["annotations"]:
        row.update(image_id=str(row["image_id"]), category_id=str(row["category_id"]))
    assert len(from_coco(review, data)[tile]) == len(from_coco(review, to_coco(review))[tile]) == 3


@pytest.mark.parametrize("segmentation", [[], [[]], None, ...])
def test_a_coco_annotation_without_a_mask_is_its_box(review, tile, segmentation):
    data = to_coco(review)
    row = data["annotations"][0]
    row["segmentation"] = segmentation
    if segmentation is ...:
        del row["segmentation"]
    first = from_coco(review, data)[tile][0]
    assert np.array_equal(first.mask, mask_of(0, 0, 50, 40))
    assert not first.exact


def test_a_coco_polygon_of_points_is_read(review, tile):
    data = to_coco(review)
    data["annotations"][0]["segmentation"] = [[[0, 0], [50, 0], [50, 40], [0, 40]]]
    assert np.array_equal(from_coco(review, data)[tile][0].mask, mask_of(0, 0, 50, 40))


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("categories", 0, "name"), 3, "category 1 of the file: 'name' is 3: it must be text"),
        (
            ("categories", 1, "id"),
            1,
            "category 2 of the file: id 1 stands for 'building' and for 'tree': give each its",
        ),
        (("images", 1, "id"), 1, "image 2 of the file: id 1 stands for '.*' and for '.*': give each its own"),
        (("categories", 0, "id"), [], "category 1 of the file: 'id' is a list of 0"),
        (("images", 0), "x", 'image 1 of the file is "x": it must be an object'),
        (("images", 0, "file_name"), None, "image 1 of the file: 'file_name' is null"),
        (("annotations", 1), None, "annotation number 2 of the file is null: it must be an object"),
    ],
)
def test_a_coco_file_of_the_wrong_shape_says_where(review, path, value, match):
    data = to_coco(review)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=match):
        from_coco(review, data)


@pytest.mark.parametrize(
    ("text", "match"),
    [("[" * 200_000, "nested too deeply"), ("{", "is not JSON"), ('{"a": 1}', "is neither a COCO file nor Label")],
)
def test_files_in_an_unknown_format_raise_an_error(work, tmp_path, text, match):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        command(work, "--import", tmp_path / "a.json")


def shape_of(**value) -> dict:
    (kind,) = (key for key in value if key.endswith("labels"))
    return {"id": "new", "type": kind, "original_width": WIDTH, "original_height": HEIGHT, "value": value}


def imported(review, tile, *results) -> list:
    task = {"data": {"tile": tile}, "annotations": [{"completed_by": 1, "result": list(results)}]}
    return from_label_studio(review, [task], "x")["label-studio 1", tile]


def test_errors_in_a_label_studio_file(review, tile):
    box = {"x": 0, "y": 0, "width": 9, "height": 9, "rectanglelabels": ["car"]}
    for row, match in (
        ({**shape_of(**box), "original_width": 7}, "120 x 80 pixels, but was annotated at 7"),
        ({**shape_of(**box), "image_rotation": 90}, "was drawn on a rotated image"),
        (shape_of(**{**box, "x": float("nan")}), "'x' is NaN: it must be a number"),
        (shape_of(**{**box, "x": 1e300}), "at most 100,000"),
        (shape_of(**{**box, "width": None}), "'width' is null: it must be a number"),
        (shape_of(points=[[0, 0], [9, 9]], polygonlabels=["car"]), "a polygon has 4 numbers: expected 6 or more"),
        (shape_of(points=[[0, 0], [9], [1, 2]], polygonlabels=["car"]), "without two coordinates"),
        (shape_of(**{**box, "rectanglelabels": [3]}), "a label is 3: it must be text"),
        (shape_of(format="rle", rle=[1, 999], brushlabels=["car"]), "is not a list of bytes"),
        ("row", 'is "row": it must be an object'),
    ):
        with pytest.raises(ValueError, match=match):
            imported(review, tile, row)


def test_turned_boxes_and_ellipses_are_read(review, tile):
    """A 24 x 8 box at (60, 16), rotated by 90 degrees around its first corner, covers x 52 to 60 and y 16 to 40."""
    turned = shape_of(x=50, y=20, width=20, height=10, rotation=90, rectanglelabels=["car"])
    round_one = shape_of(x=50, y=50, radiusX=25, radiusY=25, rotation=0, ellipselabels=["tank"])
    upright = shape_of(x=50, y=50, radiusX=10, radiusY=30, rotation=90, ellipselabels=["tank"])
    box, ellipse, other = imported(
        review, tile, *({**row, "id": str(k)} for k, row in enumerate((turned, round_one, upright)))
    )
    assert np.array_equal(box.mask, mask_of(52, 16, 60, 40))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((x - 60) / 30) ** 2 + ((y - 40) / 20) ** 2 <= 1
    assert (ellipse.mask != inside).sum() < 0.03 * inside.sum()
    # The radii are 30 % of 80 pixels along x and 10 % of 120 pixels along y.
    inside = ((x - 60) / 24) ** 2 + ((y - 40) / 12) ** 2 <= 1
    assert (other.mask != inside).sum() < 0.05 * inside.sum()
    assert (box.name, ellipse.name) == ("car", "tank")


def test_a_drawing_and_its_label_in_two_results_are_one_region(review, work, tile):
    results = to_label_studio(review)[0]["predictions"][0]["result"]
    apart = []
    for row in results[:2]:
        value = {"format": "rle", "rle": row["value"]["rle"]}
        apart += [{**row, "type": "brush", "value": value}]
    apart.append({**results[0], "type": "labels", "value": {"labels": ["shed"]}})
    first, second = imported(review, tile, *apart)
    assert (first.name, first.region, first.exact) == ("shed", 1, True)
    assert np.array_equal(first.mask, mask_of(0, 0, 50, 40))
    assert (second.name, second.region) == ("unnamed", 2), (
        "a region that is drawn without a name must be kept as unnamed"
    )


def test_results_of_unknown_types_are_reported_and_decide_nothing(work, tile, tmp_path, capsys):
    file = tmp_path / "tasks.json"
    command(work, "--export", "label-studio", "--to", file)

    def change(stem, results):
        return [results[0], {"id": "region2", "type": "keypointlabels", "value": {"keypointlabels": ["x"]}}]

    finished(file, 1, change)
    command(work, "--import", file)
    assert "nothing was decided on their regions: 2 keypointlabels" in capsys.readouterr().out
    stands = decisions_of(work, "label-studio 1")
    assert stands[tile, 1] == ("accept", "building", None)
    assert (tile, 2) not in stands, "a result of an unknown type must neither accept nor reject the region"
    assert stands[tile, 3] == ("reject", None, None)


def test_brush_masks_are_lossless():
    rng = np.random.default_rng(0)
    for mask in (rng.random((37, 53)) > 0.5, mask_of(3, 3, 90, 70), np.zeros((300, 400), bool), np.ones((1, 1), bool)):
        packed = pack_brush(mask)
        assert all(0 <= byte < 256 for byte in packed)
        assert np.array_equal(unpack_brush(packed, mask.shape), mask)
    assert len(pack_brush(np.zeros((300, 400), bool))) < 50
    with pytest.raises(ValueError, match="has 16 values, but 3 x 3 pixels have 4 values each"):
        unpack_brush(pack_brush(np.ones((2, 2), bool)), (3, 3))
    with pytest.raises(ValueError, match="ends after 7 bytes, before its image is complete"):
        unpack_brush(pack_brush(np.ones((2, 2), bool))[:7], (2, 2))


def test_a_mask_encoded_by_label_studio_is_read():
    """Bytes written by label-studio-sdk 2.1.2 decode to the right mask; the SDK also decodes masks of `pack_brush`."""
    packed = [0, 0, 0, 24, 57, 27, 252, 96, 19, 255, 206, 1, 31, 248]
    assert unpack_brush(packed, (2, 3)).astype(int).tolist() == [[0, 1, 1], [0, 0, 1]]


def test_run_lengths_compressed_by_pycocotools_are_read():
    rng = np.random.default_rng(0)
    for mask in (rng.random((37, 53)) > 0.5, mask_of(3, 3, 90, 70), np.zeros((900, 400), bool), np.ones((1, 1), bool)):
        assert np.array_equal(rle_mask(rle_of(mask)["counts"], mask.shape), mask)


def test_a_brush_mask_of_single_values_is_read():
    """Some programs store short runs as single values; here 8 values, one by one, make two RGBA pixels."""
    values = [0, 0, 0, 255, 0, 0, 0, 0]
    bits = (
        f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "0" + "00" + f"{7:03b}" + "".join(f"{v:08b}" for v in values)
    )
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]
    assert unpack_brush(packed, (1, 2)).tolist() == [[True, False]]


def test_a_piece_of_any_shape_is_kept_in_the_log(review, work, tile):
    mask = polygons_mask([[0, 0, 40, 0, 0, 30]], (HEIGHT, WIDTH))
    cut = Decision(tile, 1, "ann", "split", box=(0, 0, 40, 30), mask=rle_of(mask)["counts"])
    number = review.decide(cut).into
    again = DecisionLog(work)
    labels = review.tiles.labels(tile)
    assert np.array_equal(piece_mask(labels, again.pieces[tile][number]), mask & (labels == 1))


def test_tasks_without_a_tile_key_are_matched_by_their_image(work, tile, tmp_path):
    file = tmp_path / "tasks.json"
    tasks = to_label_studio(Review(work))
    results = tasks[0]["predictions"][0]["result"]
    image = f"/data/local-files/?d=tiles/{tile}.png"
    cancelled = {"completed_by": 2, "was_cancelled": True, "result": []}
    file.write_text(json.dumps([{"data": {"image": image}, "annotations": [{"result": results}, cancelled]}]))
    command(work, "--import", file, "--reviewer", "fay")
    assert {key[1]: what[0] for key, what in decisions_of(work, "fay").items()} == {
        1: "accept",
        2: "accept",
        3: "accept",
    }
    assert decisions_of(work, "label-studio 2") == {}
