"""Tests of one image with a user: opening it, sessions, views, exports and the prompt loop."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, draw_scene
from PIL import Image

from skysense_o.image_io import ImageError
from skysense_o.interactive.dialogue import Dialogue
from skysense_o.interactive.exports import export, export_zip, repeat_command, run_settings
from skysense_o.interactive.opening import OpenedImage, open_upload, smaller_scene
from skysense_o.interactive.session import Session
from skysense_o.interactive.view import (
    class_png,
    class_rows,
    connected_part,
    map_png,
    numbered_part,
    words_and_colors,
)
from skysense_o.vocabulary import Vocabulary

NAMES = Vocabulary.parse("water,road,tree")


@pytest.fixture
def image():
    return OpenedImage(draw_scene(np.random.default_rng(0), 60, 90)[0], "town.png")


@pytest.fixture
def session(words_only, image, tmp_path):
    made = Session(words_only, image, tmp_path / "session")
    yield made
    made.close()


# Opening


def test_an_image_with_too_many_pixels_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "big.png"
    Image.new("L", (3000, 2000)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ImageError, match=r"^big.png has 3,000 x 2,000 pixels, more than the 4,000,000 allowed here"):
        open_upload(path, read_pixels=4_000_000)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", r"^bad.png is empty"), (b"no image", r"^bad.png is not an image that can be read"), (None, "damaged")],
)
def test_broken_files_are_named_without_their_folder(tmp_path, image, content, says):
    whole = io.BytesIO()
    Image.fromarray(image.rgb).save(whole, "png")
    path = tmp_path / "bad.png"
    path.write_bytes(whole.getvalue()[:2000] if content is None else content)
    with pytest.raises(ImageError, match=says) as caught:
        open_upload(path)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="^no image at 'none.png'"):
        open_upload(tmp_path / "none.png")


def test_a_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (300, 300)).save(path)
    with pytest.raises(ImageError, match="^bomb.png has 300 x 300 pixels, more than the 1,000 allowed here"):
        open_upload(path, read_pixels=1000)


def test_a_large_photo_is_scaled_down_and_says_so(tmp_path):
    pixels = np.zeros((270, 360, 3), np.uint8)
    pixels[:, 180:] = 200
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    opened = open_upload(tmp_path / "photo.png", max_pixels=10_800)
    assert opened.rgb.shape == (90, 120, 3), "scaling down must keep the aspect ratio"
    assert (opened.rgb[:, :60] == 0).all()
    assert (opened.rgb[:, 60:] == 200).all()
    assert opened.notes == ("scaled down from 360 x 270 pixels",)
    assert open_upload(tmp_path / "photo.png", max_pixels=97_200).notes == ()
    Image.new("L", (5000, 1)).save(tmp_path / "line.png")
    assert open_upload(tmp_path / "line.png", max_pixels=1000).rgb.shape == (1, 1000, 3)


def test_a_scene_that_is_scaled_down_says_so_and_keeps_its_place(tmp_path):
    scenes = pytest.importorskip("made_scenes", reason="needs the extra geo")
    pixels = scenes.fields(40, 60)
    pixels[:, :10] = 0
    opened = open_upload(scenes.write_scene(tmp_path / "s.tif", pixels, nodata=0), max_pixels=600)
    assert opened.scene is None
    assert opened.rgb.shape == (20, 30, 3)
    assert not opened.valid[:5].any()
    assert opened.valid[5:].all()
    assert "scaled down from 60 x 40 pixels for the model" in opened.notes[-1]
    import rasterio

    with (
        rasterio.open(smaller_scene(opened.full, (20, 30), tmp_path)) as smaller,
        rasterio.open(tmp_path / "s.tif") as full,
    ):
        assert smaller.shape == (20, 30)
        assert smaller.crs == full.crs
        assert smaller.bounds == full.bounds
        assert smaller.nodata == 0


def test_a_geotiff_keeps_its_place_and_says_what_is_valid(tmp_path):
    scenes = pytest.importorskip("made_scenes", reason="needs the extra geo")
    pixels = scenes.fields(40, 60)
    pixels[:, :10] = 0
    path = scenes.write_scene(tmp_path / "s.tif", pixels, nodata=0)
    opened = open_upload(path)
    assert opened.scene == path
    assert not opened.valid[:10].any()
    assert opened.valid[10:].all()
    assert (opened.rgb[:10] == 255).all()
    assert np.array_equal(opened.rgb[10:], pixels[:, 10:].transpose(1, 2, 0))


# Sessions


def test_a_session_looks_once_and_takes_its_folder_along(mini, image, tmp_path, monkeypatch):
    calls, encode = [], mini.model.tower.encode_image
    monkeypatch.setattr(mini.model.tower, "encode_image", lambda x: calls.append(1) or encode(x))
    session = Session(mini, image, tmp_path / "session")
    region = session.click(20, 10)
    assert region.mask[10, 20], "the mask must contain the clicked pixel"
    session.segment(["road", "water"])
    session.segment(["tree"], threshold=0.2)
    session.draw_box(50, 40, 10, 10)
    session.name(NAMES)
    assert len(calls) == 1
    assert session.folder.is_dir()
    session.close()
    assert list(tmp_path.iterdir()) == []


def test_words_only_weights_take_a_box_as_it_is(session):
    region = session.draw_box(50, 40, 10, 20)
    assert region.mask.sum() == 40 * 20
    assert session.draw_box(0, 0, 90, 60).mask.all(), "a box around the whole image must select all pixels"
    assert region.iou_pred is None
    with pytest.raises(ValueError, match="take words only"):
        session.click(3, 3)


def test_like_is_a_class_beside_the_words_or_alone(session):
    with pytest.raises(ValueError, match="no region yet"):
        session.add_example()
    session.draw_box(0, 0, 80, 18)  # a box around the water in the drawn scene
    assert session.add_example() == "like region 1"
    assert session.segment(["road"]).classes == ("road", "like region 1")
    assert session.segment().classes == ("none", "like region 1")
    assert session.segment(background=["road"]).classes == ("none", "like region 1")
    session.clear()
    with pytest.raises(ValueError, match="no class names were given"):
        session.segment()


def test_clicks_go_on_with_the_region_and_are_undone(prompted, image, tmp_path):
    session = Session(prompted, image, tmp_path / "session")
    with pytest.raises(ValueError, match="nothing to undo"):
        session.undo()
    first = session.click(30, 30)
    would = session.preview_click(60, 50, inside=False)
    boxed = session.preview_box(10, 20, 70, 50)
    assert session.region is first, "a preview must not change the session's region"
    region = session.click(60, 50, inside=False)
    assert np.array_equal(region.mask, would)
    mask, iou_pred = prompted.set_image(image.rgb).prompt([(30, 30), (60, 50)], [1, 0])
    assert np.array_equal(region.mask, mask)
    assert region.iou_pred == iou_pred
    assert session.draw_box(70, 50, 10, 20).prompt.box == (10, 20, 70, 50)
    assert np.array_equal(session.region.mask, boxed)
    assert np.array_equal(session.undo().mask, mask), "undo must remove the box and restore the mask of both clicks"
    assert np.array_equal(session.undo().mask, first.mask)
    assert session.undo() is None
    assert session.region is None
    assert not session.can_undo
    proposals = session.find_all_regions(NAMES, side=4, iou_pred=0, stability_score=0)
    smallest = min(range(len(proposals)), key=lambda i: proposals[i].mask.sum())
    assert (session.proposal_labels[proposals[smallest].mask] == smallest + 1).all()
    session.close()


# Views


def channels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_browser_gets_every_label_and_score(session):
    session.segment(["water", "<b>road</b>"], colors={"water": (1, 2, 3)})
    red, green, blue = np.moveaxis(channels(class_png(session)), -1, 0)
    assert np.array_equal(red, session.found.labels)
    assert not blue.any()
    assert np.abs(green / 255 - session.found.score).max() < 0.02
    rows = class_rows(session)
    assert (rows[0]["name"], rows[0]["color"]) == ("water", "#010203")
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    many = tuple(f"class {i}" for i in range(300))
    labels = np.arange(60 * 90, dtype=np.uint16).reshape(60, 90) % 300
    session.found = replace(session.found, classes=many, labels=labels)
    red, _, blue = np.moveaxis(channels(class_png(session)).astype(int), -1, 0)
    assert np.array_equal(red + 256 * blue, session.found.labels), "labels above 255 must be stored in two channels"
    region = session.draw_box(10, 10, 40, 30)
    assert np.array_equal(channels(map_png(session, [region.mask.astype(np.uint8)]))[..., 0], region.mask)


def test_a_connected_part_is_measured_and_outlined(session):
    with pytest.raises(ValueError, match="nothing to measure yet"):
        connected_part(session, 0, 0)
    session.segment(["water", "road"])
    session.found.labels[:] = 0
    session.found.labels[10:20, 30:50] = 1
    session.found.labels[12:15, 35:40] = 0
    part = connected_part(session, 31, 11)
    assert (part["name"], part["pixels"], part["area_m2"]) == ("road", 200 - 15, None)
    outer = max(part["rings"], key=len)
    assert len(part["rings"]) == 2, "the outline must have two rings, the outer one and the hole"
    corners = np.concatenate([np.array(ring) for ring in part["rings"]])
    assert corners.min(0).tolist() == [30, 10] or np.allclose(corners.min(0), [30, 10], atol=0.3)
    assert np.allclose(corners.max(0), [50, 20], atol=0.3)
    assert outer
    hole = connected_part(session, 36, 13)
    assert hole["pixels"] == 15, "the pixels in the hole must form their own connected part"
    assert (hole["number"], hole["parts"]) == (2, 2)
    assert numbered_part(session, hole["name"], 2) == hole, (
        "a class's parts must be numbered by size, the largest first"
    )
    assert connected_part(session, *map(int, hole["inside"])) == hole
    with pytest.raises(ValueError, match="no part 3 of 'water', which has 2"):
        numbered_part(session, "water", 3)
    with pytest.raises(ValueError, match="no class 'sea', there are: "):
        numbered_part(session, "sea", 1)
    with pytest.raises(ValueError, match="lies outside the image, which is 90 x 60"):
        connected_part(session, 90, 0)


def test_a_part_is_of_one_segmentation_even_if_another_replaces_it_meanwhile(session, monkeypatch):
    """Regression: a part could have the outline from one segmentation, and its name from another one or none."""
    before = session.segment(["water", "road", "tree"])
    before.labels[:] = 0
    before.labels[10:20, 30:50] = 2
    part = connected_part(session, 31, 11)
    after = replace(before, classes=("sea",), labels=np.zeros_like(before.labels))
    for measure in (lambda: connected_part(session, 31, 11), lambda: numbered_part(session, part["name"], 1)):
        reads = iter([before])
        with monkeypatch.context() as patch:
            patch.setattr(Session, "found", property(lambda _: next(reads, after)), raising=False)  # noqa: B023
            assert measure() == part


def test_words_may_have_colours():
    text = "road #e83cc8, building|house #f00,tree"
    words, colors = words_and_colors(text)
    assert words == ["road", " building|house", "tree"]
    assert colors == {"road": (232, 60, 200), "building": (255, 0, 0)}
    assert words_and_colors("  ") == ([], {})
    with pytest.raises(ValueError, match="'road #red' has no colour after its #: write it as road #e83cc8"):
        words_and_colors("road #red")


# Files


def test_the_command_repeats_the_run(session, image, call, tmp_path):
    with pytest.raises(ValueError, match="nothing to repeat yet"):
        repeat_command(session)
    session.segment(["water", "road|street"], ["tree"], 0.3)
    command = repeat_command(session)
    assert command == (
        "python -m skysense_o segment town.png --classes 'water,road|street' --background tree --threshold 0.3"
        " --weights mini --output out"
    )
    assert run_settings(session)["command"] == command
    Image.fromarray(image.rgb).save(tmp_path / "town.png")
    python, *words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (python, done.returncode) == ("python", 0), done.stderr
    labels = np.asarray(Image.open(tmp_path / "out/town_labels.png"))
    assert (labels == session.found.labels).mean() > 0.999
    session.draw_box(0, 0, 80, 18)
    session.add_example()
    session.segment(["road"])
    assert repeat_command(session) is None, "no command can repeat a run with an example region, which has no word"


def test_every_file_of_a_plain_image(session):
    with pytest.raises(ValueError, match="nothing to save yet"):
        export(session)
    session.segment(["water", "road"], ["tree"])
    written = export(session)
    assert {p.name.removeprefix("town") for p in written} >= {
        "_overlay.png", "_labels.png", "_probabilities.npz", ".json", "_labels.tif", "_confidence.tif", ".gpkg",
        "_coco.json", "_boxes.json", "_areas.csv",
    }  # fmt: skip
    assert all(path.is_file() and path.parent == session.folder / "files" for path in written)
    assert np.array_equal(np.asarray(Image.open(session.folder / "files/town_labels.png")), session.found.labels)
    settings = json.loads((session.folder / "files/town.json").read_text())["settings"]
    assert settings["input"] == "town.png"
    assert len(settings["weights_sha256"]) == 64
    with np.load(session.folder / "files/town_probabilities.npz") as stored:
        assert stored["probabilities"].shape == (3, 60, 90)
        best = stored["probabilities"].astype(np.float32).argmax(0)
    assert (best[session.found.labels > 0] == session.found.labels[session.found.labels > 0] - 1).mean() > 0.99


def test_the_zip_file_holds_all_files_and_says_what_they_are(session, monkeypatch):
    session.segment(["water", "road"])
    with zipfile.ZipFile(export_zip(session)) as packed:
        names, text = packed.namelist(), packed.read("README.txt").decode()
    files = {path.name for path in (session.folder / "files").iterdir()}
    assert set(names) == {"README.txt", *files}
    assert all(f"{name}: " in text for name in files)
    assert "Classes: water, road" in text
    monkeypatch.setattr("skysense_o.interactive.session.MOST_VALUES", 10)
    with zipfile.ZipFile(export_zip(session)) as packed:
        assert "Probabilities were left out" in packed.read("README.txt").decode()
        assert "town_probabilities.npz" not in packed.namelist()


def test_files_of_a_scene_hold_what_was_seen_in_its_place(mini, tmp_path):
    scenes = pytest.importorskip("made_scenes", reason="needs the extra geo")
    import geopandas
    import rasterio

    pixels = scenes.fields(60, 80)
    pixels[:, :10] = 0
    session = Session(mini, open_upload(scenes.write_scene(tmp_path / "s.tif", pixels, nodata=0)), tmp_path / "session")
    session.segment(["water", "road", "tree"])
    files = {path.name: path for path in export(session)}
    with rasterio.open(files["s_labels.tif"]) as file:
        assert file.crs.to_epsg() == 32633
        assert file.transform == scenes.UTM["transform"]
        labels = file.read(1)
    assert (labels[:10] == 255).all()
    assert np.array_equal(labels[10:], session.found.labels[10:])
    rows = session.rows()
    assert sum(row["area_m2"] for row in rows) == pytest.approx(50 * 80 * 4)
    table = geopandas.read_file(files["s.gpkg"])
    assert table.area_m2.sum() == pytest.approx(50 * 80 * 4)
    assert geopandas.read_file(files["s.geojson"]).crs.to_epsg() == 4326
    session.close()


# The prompt loop


def test_the_prompt_loop(session, tmp_path):
    lines = [
        "road,water", "name", "box 0 0 80 18", "name", "name road,tree", "like", "point 1 1", "point a b", "box 1 2",
        "road,,x", "", "help", "save", "quit", "never reached",
    ]  # fmt: skip
    said = io.StringIO()
    Dialogue(session, tmp_path / "out", lambda: NAMES, stdin=io.StringIO("\n".join(lines)), stdout=said).cmdloop()
    text = said.getvalue()
    for part in (
        "town.png, 90 x 60 pixels", "error: no region yet", "1,440 pixels", "cosine", "like region 1 is a class now",
        "error: these weights take words only", "'a b' is not understood: write it as point x y",
        "'1 2' is not understood: write it as box x0 y0 x1 y1", "error: a class name is blank",
        "everything [n]", "town_labels.tif",
    ):  # fmt: skip
        assert part in text
    assert "never reached" not in text
    assert {"town_overlay.png", "town_region.png", "town_labels.tif"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_everything_that_finds_nothing_says_so(prompted, image, tmp_path, monkeypatch):
    session, said = Session(prompted, image, tmp_path / "session"), io.StringIO()
    monkeypatch.setattr(session, "find_all_regions", partial(session.find_all_regions, iou_pred=1, stability_score=1))
    Dialogue(session, tmp_path, lambda: NAMES, stdin=io.StringIO("everything 2"), stdout=said).cmdloop()
    assert "no region with a high enough score: try more points" in said.getvalue()
    session.close()


def test_the_prompt_loop_with_prompts(prompted, image, tmp_path, monkeypatch):
    session, said = Session(prompted, image, tmp_path / "session"), io.StringIO()
    lines = "point 9 9 0\npoint 20 20\npoint 70 50 0\nundo\nundo\nundo\npoint 20 20\n"
    lines += "everything 4\nwords point of view\nclear\nname"
    monkeypatch.setattr(session, "find_all_regions", partial(session.find_all_regions, iou_pred=0, stability_score=0))
    Dialogue(session, tmp_path, lambda: NAMES, stdin=io.StringIO(lines), stdout=said).cmdloop()
    assert said.getvalue().count(" pixels, predicted IoU ") == 4, "two points, the first one again after undo, one more"
    assert (
        "error: there is no region to remove from: first select one by a foreground click or a box" in said.getvalue()
    )
    assert "error: nothing to undo" in said.getvalue()
    assert "point of view" in said.getvalue()
    assert "no region yet" in said.getvalue().splitlines()[-2:][0] + said.getvalue().splitlines()[-1]
    assert (tmp_path / "town_everything.png").is_file()
    session.close()


def test_the_command_line(call, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _="": "quit")
    shipped = ROOT / "demo/yellowstone_0.4m.jpg"
    words = ("--interactive", "--classes", "road,vegetation", "--output", tmp_path)
    code, said, err = call("demo/demo.py", "--input", shipped, *words)
    assert code == 0, err
    assert "312 x 259 pixels" in said
    assert (tmp_path / "yellowstone_0.4m_overlay.png").is_file()
    code, _, err = call("demo/demo.py", "--input", shipped, shipped.parent / "fields_30m.jpg", *words)
    assert code == 2
    assert "takes one image, and 2 were given" in err
    code, _, err = call("demo/demo.py", "--input", shipped, "--output", tmp_path)
    assert code == 2
    assert "no classes: give --classes" in err
