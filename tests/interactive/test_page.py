"""The web page in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_scene, load_script, small_config
from PIL import Image

from skysense_o import Predictor, Vocabulary
from skysense_o.interactive.serving import dragged_box
from skysense_o.meta_arch import SkySenseO

pytest.importorskip("gradio", reason='the web page needs gradio: pip install -e ".[app]"')
playwright = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[test]"')
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install --no-install-recommends chromium"
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 60_000


@pytest.fixture(scope="module")
def app():
    return load_script("demo/app.py")


@pytest.fixture(scope="module")
def served(app, words_only, tmp_path_factory):
    """(address, the folder of all that people leave)."""
    root = tmp_path_factory.mktemp("skysense_o_page")
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    page = app.Page(words_only, root, 200_000)
    blocks = app.build(page, answer=lambda rgb, question: f"{question} {rgb.shape[1]} wide")
    yield app.serve(blocks, root, "127.0.0.1", None, "1mb", block=False), root
    blocks.close()
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser, served):
    """Open the page as a new person; what the server says is searched for its own paths at the end."""
    people, said = [], []

    def keep(response):
        try:
            said.append((response.url, response.text() if "image" not in str(response.headers) else ""))
        except playwright.Error:  # an event stream that was cut when the tab closed
            said.append((response.url, ""))

    def open_page(width=1280, height=900):
        context = browser.new_context(viewport={"width": width, "height": height})
        people.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("response", keep)
        page.goto(served[0], wait_until="domcontentloaded")
        return page

    yield open_page
    for context in people:
        context.close()
    assert said
    for secret in (str(served[1]), str(ROOT), os.path.expanduser("~") + "/"):
        assert not [url for url, text in said if secret in url or secret in text], secret


@pytest.fixture
def town(tmp_path):
    path = tmp_path / "town.png"
    Image.fromarray(draw_scene(np.random.default_rng(0), 120, 180)[0]).save(path)
    return path


def segment(page, words: str) -> str:
    """Ask, wait, and give back the legend's text."""
    page.get_by_label("Classes").fill(words)
    page.get_by_role("button", name="Segment").click()
    page.locator(".legend", has_text=words.split(",")[0].split(" #")[0]).wait_for()
    return page.locator(".legend").inner_text()


def click(page, x: float, y: float) -> None:
    """At a share of the image's width and height."""
    image = page.locator("#view img")
    box = image.bounding_box()
    image.click(position={"x": box["width"] * x, "y": box["height"] * y})


@needs_chromium
def test_an_example_words_masks_a_box_and_files(visit, tmp_path):
    page = visit()
    page.get_by_role("button", name="River and town (GeoTIFF)").click()
    page.get_by_text("with its place on the ground").wait_for()
    assert page.get_by_label("Classes").input_value() == "water, vegetation, building"
    before = page.locator("#view img").get_attribute("src")
    text = segment(page, "water #0000ff, vegetation, building")
    assert "km²" in text
    assert page.locator(".swatch").first.get_attribute("style") == "background:#0000ff"
    page.wait_for_function("was => document.querySelector('#view img').src !== was", arg=before)
    masks = page.locator("#view img").get_attribute("src")
    page.get_by_role("checkbox", name="vegetation").uncheck()
    page.wait_for_function("was => document.querySelector('#view img').src !== was", arg=masks)

    click(page, 0.25, 0.25)
    page.get_by_text("Now the opposite corner.").wait_for()
    click(page, 0.5, 0.5)
    page.get_by_text("It looks most like").wait_for()
    said = page.locator(".region").inner_text()
    pixels = int(said.split(" pixels")[0].split()[-1].replace(",", ""))
    assert pixels == pytest.approx(76 * 71, rel=0.06), "the box is where it was drawn"
    page.get_by_role("button", name="Find everything like it").click()
    page.locator(".legend", has_text="like region 1").wait_for()

    page.get_by_role("button", name="Make files to download").click()
    for name in ("foz_30m_overlay.png", "foz_30m_labels.tif", "foz_30m.gpkg", "foz_30m.geojson", "foz_30m_areas.csv"):
        page.locator("[aria-label*=foz_30m], a[href*=foz_30m]").first.wait_for()
        with page.expect_download() as download:
            page.locator(f"a[href$='/{name}']").click()
        download.value.save_as(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    import rasterio

    with rasterio.open(tmp_path / "foz_30m_labels.tif") as got, rasterio.open(ROOT / "demo/foz_30m.tif") as given:
        assert (got.crs, got.transform, got.shape) == (given.crs, given.transform, given.shape)


@needs_chromium
def test_a_box_is_dragged(visit, town):
    page = visit()
    page.locator("input[type=file]").set_input_files(town)
    page.get_by_text("town.png, 180 x 120 pixels").wait_for()
    image = page.locator("#view img")
    image.evaluate("img => img.decode()")
    box = image.bounding_box()
    zoom = box["width"] / 180

    def drag(*corners: tuple[int, int]) -> None:
        before = image.get_attribute("src")
        (x, y), *rest = [(box["x"] + x * zoom, box["y"] + y * zoom) for x, y in corners]
        page.mouse.move(x, y)
        page.mouse.down()
        for x, y in rest:
            page.mouse.move(x, y, steps=4)
        page.mouse.up()
        page.wait_for_function("was => document.querySelector('#view img').src !== was", arg=before)

    drag((90.5, 80.5), (10.5, 50.5), (30.5, 20.5))  # upwards, and back again
    said = page.locator(".region").inner_text()
    assert "It looks most like" in said
    assert int(said.split(" pixels")[0].split()[-1].replace(",", "")) == pytest.approx(60 * 60, rel=0.06)
    drag((90.5, 60.5), (180 + 30, 60.5 + 30))
    page.wait_for_function("was => document.querySelector('.region').innerText !== was", arg=said)
    assert not page.get_by_text("Now the opposite corner.").count(), "no click was made of it"
    page.get_by_role("button", name="Clear region").click()
    page.wait_for_function("() => !document.querySelector('.region')")
    drag((90.5, 60.5), (180 + 30, 60.5 + 30))
    page.locator(".region").wait_for()  # the same box again


def test_a_box_that_is_told_is_understood_or_refused():
    assert dragged_box("90 10 31 70 12345", 3) == (10, 3, 31, 24)
    for text in ("", "1 2 3", "1 2 3 x", "-1 2 3 4"):
        with pytest.raises(ValueError, match=f"'{text}' is no box: x0 y0 x1 y1, in pixels"):
            dragged_box(text, 1)


@needs_chromium
def test_uploads_mistakes_and_a_question(visit, town, tmp_path):
    page = visit()
    page.get_by_role("button", name="Segment").click()
    page.get_by_text("drop one, or take an example").nth(1).wait_for()
    (tmp_path / "bad.png").write_bytes(town.read_bytes()[:900])
    page.set_input_files("input[type=file]", tmp_path / "bad.png")
    page.get_by_text("bad.png is cut short or damaged").wait_for()
    page.reload()
    Image.new("L", (700, 300)).save(tmp_path / "large.png")
    page.set_input_files("input[type=file]", tmp_path / "large.png")
    page.get_by_text("large.png has 700 x 300 pixels and 200,000 in all are allowed").wait_for()
    page.reload()
    page.set_input_files("input[type=file]", town)
    page.get_by_text("town.png, 180 x 120 pixels").wait_for()
    page.get_by_label("Classes").fill("road,,tree")
    page.get_by_role("button", name="Segment").click()
    page.get_by_text("a class name is blank").wait_for()
    page.get_by_label("Ask about the image").fill("How far?")
    page.get_by_label("Ask about the image").press("Enter")
    page.get_by_text("How far? 180 wide").wait_for()


@needs_chromium
def test_two_people_at_once_and_their_folders_go(visit, served, town, tmp_path):
    other = tmp_path / "field.png"
    Image.fromarray(draw_scene(np.random.default_rng(1), 90, 100)[0]).save(other)
    first, second = visit(), visit(390, 844)
    for page, path, said in ((first, town, "180 x 120"), (second, other, "100 x 90")):
        page.set_input_files("input[type=file]", path)
        page.get_by_text(said).wait_for()
    for page, words in ((first, "water,road"), (second, "vegetation,land")):
        page.get_by_label("Classes").fill(words)
        page.get_by_role("button", name="Segment").click()
    legends = []
    for page in (first, second):
        page.locator(".legend").wait_for()
        legends.append(page.locator(".legend").inner_text())
    assert "road" in legends[0]
    assert "land" not in legends[0]
    assert "vegetation" in legends[1]
    assert "road" not in legends[1]
    assert second.evaluate("document.documentElement.scrollWidth") <= 390, "a phone scrolls down only"
    sessions = set(served[1].glob("session_*"))
    first.get_by_role("button", name="Road in a forest").click()
    first.get_by_text("312 x 259").wait_for()
    assert len(set(served[1].glob("session_*")) & sessions) == len(sessions) - 1, "the image before is gone"


def test_without_an_answerer_there_is_no_question_box(app, mini, tmp_path):
    def labels(blocks):
        return {getattr(block, "label", None) for block in blocks.blocks.values()}

    page = app.Page(mini, tmp_path, 1000)
    assert "Ask about the image" not in labels(app.build(page))
    assert "Ask about the image" in labels(app.build(page, answer=lambda rgb, text: ""))


def test_words_only_weights_are_told_what_to_load(app, words_only, tmp_path):
    infos = [getattr(b, "info", None) or "" for b in app.build(app.Page(words_only, tmp_path, 1000)).blocks.values()]
    assert any("load weights that were trained with prompts (configs/mini/prompts.yaml)" in info for info in infos)


def test_weights_with_prompts_take_clicks_and_everything(app, tmp_path):
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.PROMPTS = True
    torch.manual_seed(0)
    page = app.Page(Predictor(SkySenseO(cfg)), tmp_path, 200_000)
    page.all_names = lambda: Vocabulary.parse("water,road")
    choices = [c for block in app.build(page).blocks.values() for c, _ in getattr(block, "choices", None) or ()]
    assert choices == [app.INSIDE, app.OUTSIDE, app.BOX]
    session = page.open(ROOT / "demo/fields_30m.jpg", None)[0]
    session, view, text = page.select(session, app.INSIDE, [], 0.5, (300, 240))
    assert session.region.points == [(100, 80)], "the image is shown three times larger"
    assert "IoU thought to be" in text
    assert view.size == (900, 840)
    _, _, text = page.everything(session, [], 0.5)
    assert "regions</b> without a word" in text
    session.close()


def test_a_bug_is_not_told_to_the_browser(app):
    import gradio as gr

    def broken(session):
        raise RuntimeError("/secret/place")

    with pytest.raises(gr.Error, match="server's log says why"):
        app.guarded(broken)(object())
    with pytest.raises(gr.Error, match="No image yet"):
        app.guarded(broken)(None)
