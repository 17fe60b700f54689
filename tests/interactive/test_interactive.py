"""One image with a user: opening, sessions, exports, the prompt loop, hidden paths."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, draw_scene
from PIL import Image

from skysense_o.image_io import ImageError
from skysense_o.interactive.dialogue import Dialogue
from skysense_o.interactive.exports import export, export_zip
from skysense_o.interactive.hidden_paths import HiddenPaths
from skysense_o.interactive.opening import OpenedImage, open_upload
from skysense_o.interactive.session import Session
from skysense_o.interactive.view import legend, region_text, render_view, words_and_colors
from skysense_o.vocabulary import Vocabulary

NAMES = Vocabulary.parse("water,road,tree")


@pytest.fixture
def image():
    return OpenedImage(draw_scene(np.random.default_rng(0), 60, 90)[0], "town.png")


@pytest.fixture
def session(words_only, image, tmp_path):
    made = Session(words_only, image, tmp_path)
    yield made
    made.close()


# Opening


def test_an_image_with_too_many_pixels_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "big.png"
    Image.new("L", (3000, 2000)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ImageError, match=r"^big.png has 3,000 x 2,000 pixels and 4,000,000 in all are allowed here"):
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
    with pytest.raises(ImageError, match="^bomb.png has 300 x 300 pixels and 1,000 in all are allowed here"):
        open_upload(path, read_pixels=1000)


def test_a_large_photo_is_scaled_down_and_says_so(tmp_path):
    pixels = np.zeros((270, 360, 3), np.uint8)
    pixels[:, 180:] = 200
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    opened = open_upload(tmp_path / "photo.png", max_pixels=10_800)
    assert opened.rgb.shape == (90, 120, 3), "the aspect ratio is kept"
    assert (opened.rgb[:, :60] == 0).all()
    assert (opened.rgb[:, 60:] == 200).all()
    assert opened.notes == ("scaled down from 360 x 270 pixels",)
    assert open_upload(tmp_path / "photo.png", max_pixels=97_200).notes == ()
    Image.new("L", (5000, 1)).save(tmp_path / "line.png")
    assert open_upload(tmp_path / "line.png", max_pixels=1000).rgb.shape == (1, 1000, 3)


def test_a_scene_that_is_scaled_down_says_that_its_place_is_lost(tmp_path):
    scenes = pytest.importorskip("made_scenes", reason="needs the extra geo")
    pixels = scenes.fields(40, 60)
    pixels[:, :10] = 0
    opened = open_upload(scenes.write_scene(tmp_path / "s.tif", pixels, nodata=0), max_pixels=600)
    assert opened.scene is None
    assert opened.rgb.shape == (20, 30, 3)
    assert not opened.valid[:5].any()
    assert opened.valid[5:].all()
    assert "its place on the ground is lost here" in opened.notes[-1]


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
    session = Session(mini, image, tmp_path)
    region = session.click(20, 10)
    assert region.mask[10, 20], "the shipped weights take clicks"
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
    assert session.draw_box(0, 0, 90, 60).mask.all(), "the whole image"
    assert region.iou_pred is None
    with pytest.raises(ValueError, match="take words only"):
        session.click(3, 3)


def test_like_is_a_class_beside_the_words_or_alone(session):
    with pytest.raises(ValueError, match="no region yet"):
        session.add_example()
    session.draw_box(0, 0, 80, 18)  # the water of the drawn scene
    assert session.add_example() == "like region 1"
    assert session.segment(["road"]).classes == ("road", "like region 1")
    assert session.segment().classes == ("none", "like region 1")
    assert session.segment(background=["road"]).classes == ("none", "like region 1")
    session.clear()
    with pytest.raises(ValueError, match="no class names were given"):
        session.segment()


def test_clicks_go_on_with_the_region_and_two_corners_are_a_box(prompted, image, tmp_path):
    session = Session(prompted, image, tmp_path)
    session.click(30, 30)
    region = session.click(60, 50, inside=False)
    mask, iou_pred = prompted.set_image(image.rgb).prompt([(30, 30), (60, 50)], [1, 0])
    assert np.array_equal(region.mask, mask)
    assert region.iou_pred == iou_pred
    assert session.corner_at(70, 50) is None
    region = session.corner_at(10, 20)
    assert region.box == (10, 20, 71, 51), "both corner pixels are inside"
    assert session.corner is None
    proposals = session.find_all_regions(NAMES, side=4, iou_pred=0, stability_score=0)
    smallest = min(range(len(proposals)), key=lambda i: proposals[i].mask.sum())
    assert (session.proposal_labels[proposals[smallest].mask] == smallest + 1).all()
    session.close()


def test_the_view(session):
    plain = np.asarray(render_view(session, (), 0.5))
    assert np.array_equal(plain, session.image.rgb)
    session.segment(["water", "<b>road</b>"], colors={"water": (1, 2, 3)})
    assert np.array_equal(np.asarray(render_view(session, (), 1)), session.image.rgb), "every mask is switched off"
    shown = np.asarray(render_view(session, ("water",), 1))
    water = session.found.labels == 0
    assert (shown[water] == (1, 2, 3)).all()
    assert np.array_equal(shown[~water], session.image.rgb[~water])
    table = legend(session)
    assert "#010203" in table
    assert "&lt;b&gt;road" in table
    assert "<b>road" not in table
    session.draw_box(10, 10, 40, 30)
    assert "600 pixels, the box itself" in region_text(session, session.name(NAMES))
    assert not np.array_equal(np.asarray(render_view(session, (), 0.5)), session.image.rgb)


def test_words_may_have_colours():
    text = "road #e83cc8, building|house #f00,tree"
    words, colors = words_and_colors(text)
    assert words == ["road", " building|house", "tree"]
    assert colors == {"road": (232, 60, 200), "building": (255, 0, 0)}
    assert words_and_colors("  ") == ([], {})
    with pytest.raises(ValueError, match="'road #red' has no colour after its #: write it as road #e83cc8"):
        words_and_colors("road #red")


# Files


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
    session = Session(mini, open_upload(scenes.write_scene(tmp_path / "s.tif", pixels, nodata=0)), tmp_path)
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
    session, said = Session(prompted, image, tmp_path), io.StringIO()
    monkeypatch.setattr(session, "find_all_regions", partial(session.find_all_regions, iou_pred=1, stability_score=1))
    Dialogue(session, tmp_path, lambda: NAMES, stdin=io.StringIO("everything 2"), stdout=said).cmdloop()
    assert "no region with a high enough score: try more points" in said.getvalue()
    session.close()


def test_the_prompt_loop_with_prompts(prompted, image, tmp_path, monkeypatch):
    session, said = Session(prompted, image, tmp_path), io.StringIO()
    lines = "point 20 20\npoint 70 50 0\neverything 4\nwords point of view\nclear\nname"
    monkeypatch.setattr(session, "find_all_regions", partial(session.find_all_regions, iou_pred=0, stability_score=0))
    Dialogue(session, tmp_path, lambda: NAMES, stdin=io.StringIO(lines), stdout=said).cmdloop()
    assert said.getvalue().count(" pixels, predicted IoU ") == 2
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
    assert "takes one image and --input gives 2" in err
    code, _, err = call("demo/demo.py", "--input", shipped, "--output", tmp_path)
    assert code == 2
    assert "no classes: give --classes" in err


# Hidden paths


def test_the_folder_has_another_name_outside(tmp_path):
    """What comes out names the alias; what comes in by the alias reaches the folder, in address and body alike."""
    got, kind = {}, b"application/json"

    async def app(scope, receive, send):
        got.update(path=scope["path"], query=scope["query_string"], body=(await receive())["body"])
        headers = [(b"location", str(tmp_path).encode() + b"/x"), (b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": f'{{"path": "{tmp_path}/a.png"}}'.encode()})

    hidden, sent = HiddenPaths(app, tmp_path), []
    alias = hidden.alias.decode()
    assert len(alias) == len(str(tmp_path))

    async def receive():
        return {"type": "http.request", "body": f'["{alias}/b.png"]'.encode()}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": f"/file={alias}/c.png", "query_string": f"f={alias}".encode(), "headers": []}
    asyncio.run(hidden(scope, receive, send))
    assert got == {
        "path": f"/file={tmp_path}/c.png",
        "query": f"f={tmp_path}".encode(),
        "body": f'["{tmp_path}/b.png"]'.encode(),
    }
    assert str(tmp_path) not in str(sent)
    assert sent[1]["body"].decode() == f'{{"path": "{alias}/a.png"}}'
    kind = b"application/zip"
    sent.clear()
    asyncio.run(hidden(scope, receive, send))
    assert str(tmp_path) in sent[1]["body"].decode(), "a download passes unchanged"
