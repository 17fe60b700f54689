"""The web page in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_scene, load_script, small_config
from PIL import Image

from skysense_o import Predictor, Vocabulary
from skysense_o.interactive.layout import build
from skysense_o.interactive.limits import Limits
from skysense_o.interactive.page import BOX, INSIDE, OUTSIDE, Example, Page
from skysense_o.interactive.serving import dragged_box
from skysense_o.interactive.session import Session
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
WAIT = 180_000


@pytest.fixture(scope="module")
def app():
    return load_script("demo/app.py")


@pytest.fixture(scope="module")
def served(app, words_only, tmp_path_factory):
    """(address, the page) with all that the real page has."""
    root = tmp_path_factory.mktemp("skysense_o_page")
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    examples = [Example(title, ROOT / "demo" / file, words) for title, file, words in app.EXAMPLES]
    limits = Limits(pixels=200_000, read_pixels=400_000, upload_bytes=1 << 20, jobs=1, seconds=600)
    page = Page(words_only, root, limits, lambda rgb, question: f"{question} {rgb.shape[1]} wide", examples)
    page.naming_vocabulary = Vocabulary.parse("water,road,tree,building")
    yield app.serve(page, "127.0.0.1", None), page
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
        page.get_by_text("yellowstone_0.4m.jpg, 312 x 259 pixels").wait_for()
        return page

    yield open_page
    for context in people:
        context.close()
    assert said
    for secret in (str(served[1].root), str(ROOT), os.path.expanduser("~") + "/"):
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
    first, *_, last = (word.split(" #")[0].strip() for word in words.split(","))
    page.locator(".legend", has_text=first).filter(has_text=last).wait_for()
    return page.locator(".legend").inner_text()


def click(page, x: float, y: float) -> None:
    """At a share of the image's width and height."""
    image = page.locator("#view img")
    box = image.bounding_box()
    image.click(position={"x": box["width"] * x, "y": box["height"] * y})


@needs_chromium
def test_it_opens_with_an_example_segmented(visit):
    """On a phone, too, where the result is in view without scrolling."""
    for width, height in ((1400, 900), (390, 844)):
        page = visit(width, height)
        assert page.get_by_label("Classes").input_value() == "road, vegetation"
        assert "vegetation" in page.locator(".legend").inner_text()
        assert page.get_by_role("checkbox", name="road").is_checked()
        box = page.locator("#view img").bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height, "the whole result is above the fold"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls down only"
        page.get_by_role("button", name="What the model knows").click()
        page.get_by_text("Any words can be asked for.").wait_for()
        thumbnail = "getComputedStyle(document.querySelector('#example_1'), '::before').backgroundImage"
        assert "data:image/jpeg" in page.evaluate(thumbnail)


CONTRAST = """selector => [...document.querySelectorAll(selector)].map(element => {
  const parse = color => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  let ground = element, color = [];
  do { color = parse(getComputedStyle(ground).backgroundColor); ground = ground.parentElement; }
  while (ground && color.length === 4 && color[3] === 0);
  if (color.length === 4 && color[3] === 0) color = [255, 255, 255];
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(color)].sort((x, y) => y - x);
  return [element.innerText, (a + .05) / (b + .05)];
})"""


@needs_chromium
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_help_texts_have_the_contrast_of_wcag_aa(visit, served, theme):
    page = visit()
    if theme == "dark":
        page.goto(served[0] + "?__theme=dark", wait_until="domcontentloaded")
        page.get_by_text("yellowstone_0.4m.jpg, 312 x 259 pixels").wait_for()
    texts = "span[data-testid='block-info'], span[data-testid='block-info'] ~ div, #title p, .example, #legend td"
    ratios = page.evaluate(CONTRAST, f"{texts}, button.primary")
    assert len(ratios) > 8
    assert [(text, ratio) for text, ratio in ratios if ratio < 4.5] == []


@needs_chromium
def test_an_example_words_masks_a_box_and_files(visit, tmp_path):
    page = visit()
    page.get_by_role("button", name="River and town (GeoTIFF)").click()
    page.get_by_text("with its place on the ground").wait_for()
    assert page.get_by_label("Classes").input_value() == "water, vegetation, building"
    page.locator(".legend", has_text="km²").wait_for()
    before = page.locator("#view img").get_attribute("src")
    page.get_by_label("Classes").fill("water #0000ff, vegetation, building")
    page.get_by_role("button", name="Segment").click()
    page.wait_for_function("was => document.querySelector('#view img').src !== was", arg=before)
    assert page.locator(".swatch").first.get_attribute("style") == "background:#0000ff"
    masks = page.locator("#view img").get_attribute("src")
    page.get_by_role("checkbox", name="vegetation").uncheck()
    page.wait_for_function("was => document.querySelector('#view img').src !== was", arg=masks)

    click(page, 0.25, 0.25)
    page.get_by_text("Now the opposite corner.").wait_for()
    click(page, 0.5, 0.5)
    page.get_by_text("Most similar classes").wait_for()
    said = page.locator(".region").inner_text()
    pixels = int(said.split(" pixels")[0].split()[-1].replace(",", ""))
    assert pixels == pytest.approx(76 * 71, rel=0.06), "the box is where it was drawn"
    page.get_by_role("button", name="Find everything like it").click()
    page.locator(".legend", has_text="like region 1").wait_for()

    page.get_by_role("button", name="Make a ZIP file of all results").click()
    with page.expect_download() as download:
        page.locator("a[href$='/foz_30m_results.zip']").first.click()
    download.value.save_as(tmp_path / "results.zip")
    with zipfile.ZipFile(tmp_path / "results.zip") as packed:
        packed.extractall(tmp_path)
    for name in (
        "README.txt", "foz_30m_overlay.png", "foz_30m_labels.tif", "foz_30m.gpkg", "foz_30m.geojson",
        "foz_30m_areas.csv",
    ):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 0
    import rasterio

    with rasterio.open(tmp_path / "foz_30m_labels.tif") as got, rasterio.open(ROOT / "demo/foz_30m.tif") as given:
        assert (got.crs, got.transform, got.shape) == (given.crs, given.transform, given.shape)


@needs_chromium
def test_opacity_is_changed_by_keys_and_by_typing(visit):
    page = visit()
    for change in (
        lambda: page.locator("#opacity input[type=range]").press("ArrowRight"),
        lambda: page.locator("#opacity input[type=number]").fill("0.9"),
    ):
        before = page.locator("#view img").get_attribute("src")
        change()
        page.wait_for_function("was => document.querySelector('#view img').src !== was", arg=before)


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
    assert "Most similar classes" in said
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
def test_a_mistake_is_a_message_only_and_everything_stays(visit, town, tmp_path):
    page = visit()

    def unchanged(act, says: str) -> None:
        image = page.locator("#view img").get_attribute("src")
        before = [page.locator(part).inner_text() for part in ("#legend", "#reply")]
        act()
        page.get_by_text(says).first.wait_for()
        page.wait_for_timeout(300)
        assert page.locator("#view img").get_attribute("src") == image
        assert page.locator("#view img").is_visible()
        assert [page.locator(part).inner_text() for part in ("#legend", "#reply")] == before
        assert not page.locator("span.error").count(), "no component is covered by the word Error"

    page.get_by_label("Ask about the image").fill("How far?")
    page.get_by_label("Ask about the image").press("Enter")
    page.get_by_text("How far? 312 wide").wait_for()
    like = page.get_by_role("button", name="Find everything like it")
    unchanged(like.click, "no region yet: click on one or draw a box first")
    (tmp_path / "bad.png").write_bytes(town.read_bytes()[:900])
    unchanged(lambda: page.set_input_files("input[type=file]", tmp_path / "bad.png"), "bad.png is cut short or damaged")
    page.get_by_label("Classes").fill("road,,tree")
    unchanged(page.get_by_role("button", name="Segment").click, "a class name is blank")
    assert page.get_by_label("Classes").input_value() == "road,,tree"
    page.get_by_label("Classes").fill(",".join("abcdefgh" * 9))
    unchanged(page.get_by_role("button", name="Segment").click, "72 words, and 64 are allowed here")


@needs_chromium
def test_uploads_are_scaled_and_the_last_answer_goes(visit, served, town, tmp_path):
    page = visit()
    page.get_by_label("Ask about the image").fill("How far?")
    page.get_by_label("Ask about the image").press("Enter")
    page.get_by_text("How far? 312 wide").wait_for()
    Image.new("L", (700, 300)).save(tmp_path / "large.png")
    page.set_input_files("input[type=file]", tmp_path / "large.png")
    page.get_by_text("scaled down from 700 x 300 pixels").wait_for()
    assert not page.get_by_text("How far? 312 wide").count(), "it was about another image"
    assert not page.locator(".legend").count()
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    page.get_by_text("No image yet: drop one, or take an example.").wait_for()
    Image.new("L", (700, 700)).save(tmp_path / "huge.png")
    page.set_input_files("input[type=file]", tmp_path / "huge.png")
    page.get_by_text("huge.png has 700 x 700 pixels and 400,000 in all are allowed").wait_for()


@needs_chromium
def test_an_image_that_was_closed_for_others_is_told(visit, served):
    page = visit()
    for session in list(served[1].sessions._sessions.values()):
        served[1].sessions.remove(session)
    page.get_by_role("button", name="Segment").click()
    page.get_by_text("Your image was closed, because the server needed room").wait_for()
    page.get_by_role("button", name="Road in a forest").click()
    page.wait_for_function("was => document.querySelector('#view img')?.src", arg="")
    page.get_by_role("button", name="Segment").click()
    page.locator(".legend").wait_for()


@needs_chromium
def test_a_request_that_waits_sees_its_place_in_the_queue(visit, served, monkeypatch):
    """There is one job here: the second person waits for the first, and both get their answers."""
    first, second = visit(), visit()
    go = threading.Event()
    segment_now = Session.segment
    monkeypatch.setattr(Session, "segment", lambda *args, **more: go.wait(60) and segment_now(*args, **more))
    for page in (first, second):
        page.get_by_label("Classes").fill("river")
        page.get_by_role("button", name="Segment").click()
    second.get_by_text("queue: 1/1").wait_for()
    go.set()
    for page in (first, second):
        page.locator(".legend", has_text="river").wait_for()


@needs_chromium
def test_two_people_at_once_and_their_folders_go(visit, served, town, tmp_path):
    other = tmp_path / "field.png"
    Image.fromarray(draw_scene(np.random.default_rng(1), 90, 100)[0]).save(other)
    first, second = visit(), visit(390, 844)
    for page, path, said in ((first, town, "180 x 120"), (second, other, "100 x 90")):
        page.set_input_files("input[type=file]", path)
        page.get_by_text(said).wait_for()
        assert not page.locator(".legend").count()
    for page, words in ((first, "water,road"), (second, "vegetation,land")):
        page.get_by_label("Classes").fill(words)
        page.get_by_role("button", name="Segment").click()
    legends = []
    for page, word in ((first, "road"), (second, "land")):
        page.locator(".legend", has_text=word).wait_for()
        legends.append(page.locator(".legend").inner_text())
    assert "road" in legends[0]
    assert "land" not in legends[0]
    assert "water" not in legends[1]
    assert "road" not in legends[1]
    assert second.evaluate("document.documentElement.scrollWidth") <= 390, "a phone scrolls down only"
    sessions = set(served[1].root.glob("session_*"))
    first.get_by_role("button", name="Road in a forest").click()
    first.get_by_text("312 x 259").wait_for()
    assert len(set(served[1].root.glob("session_*")) & sessions) == len(sessions) - 1, "the image before is gone"


def test_without_a_vqa_model_there_is_no_question_box(mini, tmp_path):
    def visible(page):
        blocks = build(page).blocks.values()
        return next(b.visible for b in blocks if getattr(b, "label", None) == "Ask about the image")

    assert not visible(Page(mini, tmp_path))
    assert visible(Page(mini, tmp_path, answer=lambda rgb, text: ""))


def test_words_only_weights_are_told_what_to_load(words_only, tmp_path):
    infos = [getattr(b, "info", None) or "" for b in build(Page(words_only, tmp_path)).blocks.values()]
    assert any("load weights that were trained with prompts (configs/mini/prompts.yaml)" in info for info in infos)


def test_weights_with_prompts_take_clicks_and_everything(tmp_path):
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.PROMPTS = True
    torch.manual_seed(0)
    page = Page(Predictor(SkySenseO(cfg)), tmp_path)
    page.naming_vocabulary = Vocabulary.parse("water,road")
    choices = [c for block in build(page).blocks.values() for c, _ in getattr(block, "choices", None) or ()]
    assert choices == [INSIDE, OUTSIDE, BOX]
    session = page.open(None, ROOT / "demo/fields_30m.jpg")[0]
    session, view, text = page.select(session, INSIDE, [], 0.5, (300, 240))
    assert session.region.points == [(100, 80)], "the image is shown three times larger"
    assert "predicted IoU" in text
    assert view.size == (900, 840)
    _, _, text = page.everything(session, [], 0.5)
    assert "regions</b> found without words" in text
    session.close()


def test_errors_are_told_without_what_a_browser_should_not_see(words_only, tmp_path):
    import gradio as gr

    def broken(session):
        raise RuntimeError("/secret/place")

    def refused(session):
        raise ValueError("no class <img src=x>")

    page = Page(words_only, tmp_path)
    session = page.open(None, ROOT / "demo/fields_30m.jpg")[0]
    for callback, argument, says in (
        (broken, session, "server's log says why"),
        (broken, None, "No image yet"),
        (refused, session, "no class &lt;img src=x&gt;"),
    ):
        with pytest.warns(UserWarning, match=says) as told:
            assert page.event(callback)(argument) == gr.skip(), "all outputs stay"
        assert "secret" not in str([str(w.message) for w in told])
    session.close()
    with pytest.warns(UserWarning, match="Your image was closed"):
        page.event(broken)(session)


def test_options_become_limits(app):
    args = app.parser().parse_args(
        ["--max-upload=2mb", "--sessions=3", "--time-limit=5", "--max-words=7", "--answerer=x"]
    )
    assert app.limits_of(args) == Limits(upload_bytes=2 << 20, sessions=3, seconds=5, words=7)
    assert args.answerer == "x"
    assert app.limits_of(app.parser().parse_args([])) == Limits()
