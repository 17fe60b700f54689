"""Tests of the web page in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import threading
import zipfile

import numpy as np
import pytest
from conftest import ROOT, draw_scene, load_script
from PIL import Image

from skysense_o import Vocabulary
from skysense_o.data.classes import load_classes
from skysense_o.inference.classify import load_vqa_model
from skysense_o.interactive.limits import Limits
from skysense_o.interactive.page import Example, Page
from skysense_o.interactive.session import Session

pytest.importorskip("fastapi", reason='the web page needs fastapi: pip install -e ".[app]"')
playwright = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[test]"')
from skysense_o.interactive.routes import create_app
from skysense_o.interactive.serving import serve

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
def served(app, mini, tmp_path_factory):
    """Serve the page with all its features and low limits; return (address, page)."""
    root = tmp_path_factory.mktemp("skysense_o_page")
    examples = [Example(title, ROOT / "demo" / file, *words) for title, file, *words in app.EXAMPLES]
    limits = Limits(pixels=200_000, read_pixels=400_000, upload_bytes=1 << 20, jobs=1, seconds=600)
    answer = lambda rgb, question: f"{question} {rgb.shape[1]} wide"  # noqa: E731
    page = Page(mini, root, limits, answer, lambda rgb: [("forest", 0.5)], examples)
    page.naming_vocabulary = Vocabulary.parse("water,road,tree,building")
    return serve(create_app(page), "127.0.0.1", None), page


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser, served):
    """Return a function that opens the page as a new visitor; at the end, no response may contain a server path."""
    people, said, broken = [], [], []

    def keep(response):
        try:
            said.append((response.url, response.text() if "image" not in str(response.headers) else ""))
        except playwright.Error:  # the stream was cut off when the tab closed
            said.append((response.url, ""))

    def open_page(width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        people.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("response", keep)
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(served[0], wait_until="domcontentloaded")
        page.get_by_text("yellowstone_0.4m.jpg · 312 × 259 pixels").wait_for()
        page.locator("#map canvas").wait_for()
        return page

    yield open_page
    for context in people:
        context.close()
    assert broken == []
    assert said
    assert [url for url, _ in said if not url.startswith((served[0], "blob:", "data:"))] == [], (
        "the page must request nothing from other servers"
    )
    for secret in (str(served[1].root), str(ROOT), os.path.expanduser("~") + "/"):
        assert not [url for url, text in said if secret in url or secret in text], secret


@pytest.fixture
def town(tmp_path):
    path = tmp_path / "town.png"
    Image.fromarray(draw_scene(np.random.default_rng(0), 120, 180)[0]).save(path)
    return path


def changed(page, act) -> None:
    """Call `act`, and wait until the map shows the server's new answer."""
    before = page.locator("#map").get_attribute("data-shown")
    act()
    page.wait_for_function("was => (document.querySelector('#map').dataset.shown ?? was) !== was", arg=before)


def segment(page, words: str) -> list[str]:
    """Segment `words`, wait for the result, and return the class names on the chips."""
    page.locator("#words").fill(words)
    changed(page, page.get_by_role("button", name="Segment").click)
    return page.locator("#chips .name").all_inner_texts()


def open_file(page, path) -> None:
    changed(page, lambda: page.set_input_files("#file", path))


def at(page, x: float, y: float) -> tuple[float, float]:
    """Convert a position, as shares of the image's width and height, to window coordinates."""
    box = page.locator("#map .photo, #map canvas").first.bounding_box()
    return box["x"] + box["width"] * x, box["y"] + box["height"] * y


def comes_to_rest(page) -> None:
    """Wait until the map has stood still for half a second."""
    still, before = 0, None
    while still < 5:
        page.wait_for_timeout(100)
        now = at(page, 0, 0), at(page, 1, 1)
        still, before = still + 1 if now == before else 0, now


MASKS = """() => { const canvas = document.querySelector('.leaflet-masks-pane canvas');
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let shown = 0, strongest = 0;
  for (let i = 3; i < data.length; i += 4) { shown += data[i] > 0; strongest = Math.max(strongest, data[i]); }
  return [shown / (data.length / 4), strongest]; }"""


def masks(page) -> tuple[float, float]:
    """Return the share of the map's pixels with a mask, and the opacity (0 to 255) of the most opaque pixel."""
    return tuple(page.evaluate(MASKS))


def masks_become(page, condition: str) -> None:
    """Wait until a condition on `share` and `strongest` (see `masks`) is true."""
    page.wait_for_function(f"() => {{ const [share, strongest] = ({MASKS})(); return {condition}; }}")


def pixels_of_region(page) -> int:
    return int(re.search(r"([\d,]+) pixels", page.locator("#region").inner_text())[1].replace(",", ""))


@needs_chromium
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_it_opens_with_an_example_segmented_and_in_view(visit, width, height):
    page = visit(width, height)
    assert page.locator("#words").input_value() == "road, vegetation"
    assert page.locator("#chips .name").all_inner_texts() == ["road", "vegetation"]
    road = page.get_by_role("button", name=re.compile("^road"))
    assert road.get_attribute("aria-pressed") == "true"
    assert "%" in road.inner_text()
    (left, top), (right, bottom) = at(page, 0, 0), at(page, 1, 1)
    panel = page.locator("#panel").bounding_box()
    assert top >= 0
    assert right <= width
    assert bottom <= (height if width > 760 else panel["y"]), (
        "on a narrow screen the sheet at the bottom must not cover the result"
    )
    assert left >= (panel["x"] + panel["width"] if width > 760 else 0), (
        "on a wide screen the panel on the left must not cover the result"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for number in range(3):
        shown = page.locator("#examples img").nth(number).evaluate("img => img.decode().then(() => img.naturalWidth)")
        assert shown > 60
    page.get_by_text(re.compile(r"It knows \d+ classes, .* m per pixel")).click()
    page.locator("#known").get_by_role("button", name="baseball field").click()
    assert page.locator("#words").input_value() == "road, vegetation, baseball field"


CONTRAST = """selector => [...document.querySelectorAll(selector)].filter(e => e.offsetParent).map(element => {
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
def test_texts_have_the_contrast_of_wcag_aa(visit, theme):
    page = visit(color_scheme=theme)
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    page.locator("#chips button").first.click()
    page.locator("#words").fill("solar panel")
    page.locator("#words-hint .unsure").wait_for()
    texts = "h1, h2, p, small, summary, label, output, kbd, a, #chips .name, #known button, button:not(:disabled)"
    ratios = page.evaluate(CONTRAST, texts)
    assert len(ratios) > 60
    assert [(text, ratio) for text, ratio in ratios if ratio < 4.5] == []


@needs_chromium
def test_classes_opacity_and_split_change_the_view_and_ask_nothing(visit):
    page = visit()
    requests = []
    whole, strongest = masks(page)
    assert whole == 1
    page.on("request", lambda request: requests.append(request.url))
    vegetation = page.get_by_role("button", name=re.compile("^vegetation"))
    vegetation.click()
    assert vegetation.get_attribute("aria-pressed") == "false"
    page.mouse.move(700, 880)  # hovering over a class shows it alone
    masks_become(page, "share > 0 && share < 0.3")
    vegetation.click()
    page.mouse.move(700, 880)
    masks_become(page, "share === 1")
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    masks_become(page, "share === 0")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    masks_become(page, f"strongest > 0 && strongest < {strongest}")

    page.get_by_role("button", name="Split").click()
    divider = page.get_by_role("slider", name="Border between image and masks")
    assert divider.get_attribute("aria-valuenow") == "50"
    clip = "document.querySelector('.leaflet-masks-pane').style.clipPath"
    middle = page.evaluate(clip)
    assert middle.startswith("polygon(")
    divider.focus()
    page.keyboard.press("ArrowRight")
    assert divider.get_attribute("aria-valuenow") == "52"
    box = divider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, 300)
    page.mouse.down()
    page.mouse.move(box["x"] - 150, 300, steps=4)
    page.mouse.up()
    assert int(divider.get_attribute("aria-valuenow")) < 48
    assert page.evaluate(clip) != middle
    page.keyboard.press("s")
    assert not divider.is_visible()
    assert page.evaluate(clip) in ("", "none")
    # The page requests /familiar once, after a delay.
    assert [url for url in requests if not url.endswith("/familiar")] == []


@needs_chromium
def test_the_threshold_of_an_example_is_shown_and_can_be_changed(visit):
    page = visit()
    threshold, river = page.locator("#threshold-value"), page.get_by_role("button", name=re.compile("River and town"))
    assert threshold.inner_text() == "none"
    changed(page, river.click)
    assert threshold.is_visible()
    assert threshold.inner_text() == "90 %"
    page.get_by_text("Background, threshold").click()
    page.locator("#threshold").fill("0")
    changed(page, page.get_by_role("button", name="Segment").click)
    assert threshold.inner_text() == "50 % for a single class"
    changed(page, river.click)
    assert threshold.inner_text() == "90 %", "the example is opened anew"


@needs_chromium
def test_clicks_and_boxes_select_regions_and_are_undone(visit, town):
    page = visit()
    page.keyboard.press("a")
    with page.expect_response(re.compile("/api/preview/")) as preview:
        page.mouse.move(*at(page, 0.6, 0.4))
    assert preview.value.status in (200, 204)
    changed(page, lambda: page.mouse.click(*at(page, 0.25, 0.4)))
    assert "Most similar" in page.locator("#region ol").get_attribute("aria-label")
    one = pixels_of_region(page)
    page.get_by_role("radio", name="Remove").click()
    changed(page, lambda: page.mouse.click(*at(page, 0.8, 0.8)))
    changed(page, lambda: page.keyboard.press("z"))
    assert pixels_of_region(page) == one
    changed(page, page.get_by_role("button", name="Undo").click)
    assert not page.locator("#region").is_visible()
    assert page.get_by_role("button", name="Undo").is_disabled()

    open_file(page, town)
    page.keyboard.press("Tab")
    page.get_by_role("radio", name="Box").click()
    page.mouse.move(*at(page, 0.5, 0.6))
    page.mouse.down()
    page.mouse.move(*at(page, 0.1, 0.4), steps=3)
    page.mouse.move(*at(page, 0.2, 0.2), steps=3)  # first move up, then back
    page.locator(".leaflet-picks-pane canvas").wait_for()
    assert not page.locator("#region").is_visible(), "a preview must not be shown as a selected region"
    changed(page, page.mouse.up)
    assert pixels_of_region(page) > 0
    changed(page, page.get_by_role("button", name="Find everything like it").click)
    assert "like region 1" in page.locator("#chips").inner_text()
    assert page.get_by_role("button", name="Undo").is_disabled(), "the region is a class now, so Undo would do nothing"
    assert not page.get_by_role("button", name="Copy command").is_visible(), (
        "an example region has no word, so there is no command to copy"
    )

    page.locator("#map").focus()
    page.keyboard.press("Enter")  # sets a corner at the cross; the next Enter sets the other corner
    page.keyboard.press("ArrowRight")
    comes_to_rest(page)
    page.keyboard.press("ArrowDown")
    comes_to_rest(page)
    changed(page, lambda: page.keyboard.press("Enter"))
    assert pixels_of_region(page) > 0


def touch(page, act, ended: str = "click") -> None:
    """Touch the page, again if the page never hears of it: Chromium cancels a touch that a busy page answers late."""
    page.evaluate(
        """ended => {
          window.heard = false;
          addEventListener(ended, () => { window.heard = ended; }, { capture: true, once: true });
        }""",
        ended,
    )
    for _ in range(5):
        act()
        try:
            page.wait_for_function("ended => window.heard === ended", arg=ended, timeout=5_000)
            return
        except playwright.TimeoutError:
            continue
    raise AssertionError(f"after five touches, the page has had no {ended} event")


def test_the_pages_function_for_scene_names_ranks_the_scene_classes(app):
    """Regression: it passed the class names where a vocabulary is needed, and every request for a scene name failed."""
    answer, scene_names = app.whole_image_tasks(load_vqa_model("mini_vqa", "cpu"))
    rgb = np.asarray(Image.open(ROOT / "demo/yellowstone_0.4m.jpg"))
    ranked = scene_names(rgb)
    assert len(ranked) == app.SCENES
    assert {name for name, _ in ranked} < set(load_classes("ucmerced").classes)
    assert [cosine for _, cosine in ranked] == sorted((cosine for _, cosine in ranked), reverse=True)
    assert answer(rgb, "Is there water?")


@needs_chromium
def test_fingers_pinch_pan_and_drag_boxes(visit):
    """The browser itself sends the touch events. Regression: drawing a box by finger used to scroll the page."""
    page = visit(390, 844, has_touch=True, is_mobile=True)
    touches = page.context.new_cdp_session(page)

    def move(path: list) -> None:
        for k, places in enumerate(path):
            points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
            kind = "touchMove" if k else "touchStart"
            touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            page.wait_for_timeout(30)
        touches.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def fingers(*path) -> None:
        """Move fingers along a path of positions; each is a list of (x, y), one for each finger."""
        touch(page, lambda: move(path), "pointerup")

    def tap(name: str, role: str = "radio") -> None:
        touch(page, page.get_by_role(role, name=name, exact=True).tap)

    def fit() -> None:
        touch(page, page.locator("#fit").tap)
        comes_to_rest(page)

    def width() -> float:
        return at(page, 1, 0)[0] - at(page, 0, 0)[0]

    def pinch(*radii) -> None:
        x, y = at(page, 0.5, 0.5)
        fingers(*([(x - r, y), (x + r, y)] for r in radii))
        comes_to_rest(page)

    shown = page.locator("#map").get_attribute("data-shown")
    for tool in ("Move", "Add", "Box"):
        tap(tool)
        fit()
        whole = width()
        pinch(30, 50, 70, 90)
        assert width() > 1.5 * whole, tool
        assert page.evaluate("visualViewport.scale") == 1, "a pinch must zoom the map, not the page"
        assert page.locator("#map").get_attribute("data-shown") == shown, (
            "a pinch must not be taken as a click or a box"
        )
        pinch(90, 70, 50)
    tap("Move")
    before, (x, y) = at(page, 0, 0), at(page, 0.5, 0.5)
    fingers([(x, y)], [(x + 20, y + 10)], [(x + 40, y + 20)], [(x + 60, y + 30)])
    comes_to_rest(page)
    assert at(page, 0, 0)[0] > before[0] + 30
    fit()
    tap("Box")
    changed(page, lambda: fingers(*([at(page, 0.2 + k / 20, 0.2 + k / 20)] for k in range(9))))
    assert pixels_of_region(page) > 0
    changed(page, lambda: tap("Undo", "button"))
    tap("Add")
    changed(page, lambda: touch(page, lambda: page.touchscreen.tap(*at(page, 0.25, 0.4)), "pointerup"))
    assert pixels_of_region(page) > 0


@needs_chromium
def test_on_a_phone_a_message_lies_above_the_open_panel(visit, tmp_path):
    """Regression: the panel covered the message, so an error looked as if nothing had happened."""
    page = visit(390, 844)
    page.evaluate("document.querySelector('#handle').dataset.step = 1; document.querySelector('#handle').click()")
    page.locator("body.wide-sheet").wait_for()
    (tmp_path / "bad.txt").write_text("no image")
    page.set_input_files("#file", tmp_path / "bad.txt")
    toast = page.locator(".toast")
    toast.wait_for()
    comes_to_rest(page)
    box = toast.bounding_box()
    middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    assert page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('.toast') !== null", middle)


@needs_chromium
def test_a_geotiff_is_a_map(visit, tmp_path):
    page = visit(1400, 900)
    changed(page, page.get_by_role("button", name="River and town (GeoTIFF)").click)
    page.get_by_text("foz_30m.tif · 300 × 280 pixels · 30.0 m per pixel · EPSG:32621").wait_for()
    page.get_by_text("the model was trained at 0.1 to 1 m").wait_for()
    page.wait_for_function("document.querySelectorAll('.leaflet-tile-loaded').length > 0")
    assert page.locator(".leaflet-control-scale-line").inner_text() in ("1 km", "2 km", "3 km", "500 m")
    assert "km²" in page.locator("#chips").inner_text()
    page.mouse.move(*at(page, 0.5, 0.5))
    told = page.locator("#readout").inner_text()
    assert re.search(r"25\.5\d+° S, 54\.5\d+° W", told), told
    assert re.search(r"74\d,\d{3} m E, −2,82\d,\d{3} m N", told), told
    assert "confidence" in told
    wide = at(page, 1, 0)[0] - at(page, 0, 0)[0]
    page.mouse.wheel(0, -240)
    page.wait_for_function(
        "was => document.querySelector('#map canvas').getBoundingClientRect().width > 1.2 * was", arg=wide
    )
    page.keyboard.press("0")
    page.wait_for_function(
        "was => Math.abs(document.querySelector('#map canvas').getBoundingClientRect().width - was) < 5", arg=wide
    )
    page.mouse.click(*at(page, 0.5, 0.5))
    popup = page.locator(".leaflet-popup-content").last  # earlier popups are still fading out
    popup.wait_for()
    assert re.search(r"m², [\d,]+ pixels\s+mean confidence \d+ %", popup.inner_text())
    assert page.locator(".leaflet-marks-pane path").count() == 1, "the outline of the clicked part must be drawn"
    name, number, parts = re.search(r"(\w+)\n.*?([\d,]+) of ([\d,]+)", popup.inner_text(), re.S).groups()
    number, parts = (int(text.replace(",", "")) for text in (number, parts))
    for step in (1, 2):  # the second press is Enter, because the button keeps the focus
        page.keyboard.press("Enter") if step == 2 else page.get_by_role("button", name="The next smaller part").click()
        popup.get_by_text(f"{(number + step - 1) % parts + 1:,} of {parts:,}").wait_for()
    assert popup.inner_text().startswith(name)
    assert page.locator(".leaflet-marks-pane path").count() == 1
    page.keyboard.press("0")
    assert not page.locator("#basemap-choice").is_visible(), "there must be no base map by default"

    with page.expect_download() as download:
        page.get_by_role("button", name="Download all results (ZIP)").click()
    download.value.save_as(tmp_path / "results.zip")
    assert download.value.suggested_filename == "foz_30m_results.zip"
    with zipfile.ZipFile(tmp_path / "results.zip") as packed:
        packed.extractall(tmp_path)
    for name in (
        "README.txt", "foz_30m_overlay.png", "foz_30m_labels.tif", "foz_30m.gpkg", "foz_30m.geojson",
        "foz_30m_areas.csv",
    ):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 0
    assert "python -m skysense_o segment foz_30m.tif" in (tmp_path / "README.txt").read_text()
    import rasterio

    with rasterio.open(tmp_path / "foz_30m_labels.tif") as got, rasterio.open(ROOT / "demo/foz_30m.tif") as given:
        assert (got.crs, got.transform, got.shape) == (given.crs, given.transform, given.shape)
    with page.expect_download() as download:
        page.get_by_role("link", name="Settings as JSON").click()
    assert json.loads(download.value.path().read_text())["input"] == "foz_30m.tif"


@needs_chromium
def test_a_mistake_is_a_message_only_and_everything_stays(visit, town, tmp_path):
    page = visit()

    def unchanged(act, says: str) -> None:
        before = [page.locator("#map").get_attribute("data-shown"), page.locator("#panel").inner_text()]
        act()
        page.locator(".toast", has_text=says).wait_for()
        page.wait_for_timeout(300)
        assert [page.locator("#map").get_attribute("data-shown"), page.locator("#panel").inner_text()] == before

    page.locator("#questions summary").click()
    page.get_by_label("Ask about the image").fill("How far?")
    changed(page, lambda: page.get_by_label("Ask about the image").press("Enter"))
    page.get_by_text("How far? 312 wide").wait_for()
    changed(page, page.get_by_role("button", name="What kind of place is it?").click)
    page.locator("#scene-names", has_text="forest").wait_for()
    (tmp_path / "bad.png").write_bytes(town.read_bytes()[:900])
    unchanged(lambda: page.set_input_files("#file", tmp_path / "bad.png"), "bad.png is cut short or damaged")
    (tmp_path / "bad.txt").write_text("no image")
    unchanged(lambda: page.set_input_files("#file", tmp_path / "bad.txt"), "'bad.txt' is not an accepted image")
    (tmp_path / "huge.png").write_bytes(bytes(1100 << 10))
    unchanged(lambda: page.set_input_files("#file", tmp_path / "huge.png"), "huge.png has 1 MB, and 1 MB are allowed")
    page.locator("#words").fill("road,,tree")
    page.wait_for_timeout(600)
    unchanged(page.get_by_role("button", name="Segment").click, "a class name is blank")
    assert page.locator("#words").input_value() == "road,,tree"
    page.locator("#words").fill(",".join("abcdefgh" * 9))
    page.wait_for_timeout(600)
    unchanged(lambda: page.locator("#words").press("Enter"), "72 words were given, and 64 are allowed here")


@needs_chromium
def test_words_that_the_model_does_not_know_are_marked_while_they_are_typed(visit):
    page = visit()
    page.locator("#words").fill("road, solar panel")
    page.get_by_text('"solar panel" is far from every English word of the training').wait_for()
    assert page.locator("#words-marks mark").all_inner_texts() == ["solar panel"]
    page.locator("#words").fill("road, tree")
    page.get_by_text("Commas between classes").wait_for()
    assert not page.locator("#words-marks mark").count()


@needs_chromium
def test_a_class_that_the_model_does_not_know_has_a_mark_in_the_results(visit):
    page = visit()
    page.locator("#words").fill("road, solar panel")
    page.get_by_role("button", name="Segment", exact=True).click()
    mark = page.locator("#chips .doubt")
    mark.wait_for()
    assert "far from every English word" in mark.get_attribute("title")
    assert page.locator("#chips button", has=page.locator(".doubt")).get_attribute("data-name") == "solar panel"


DROP = """async data => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "dropped.png"));
  for (const type of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  } }"""


@needs_chromium
def test_own_files_are_dropped_scaled_and_kept_over_a_reload(visit, town, tmp_path):
    page = visit()
    changed(page, lambda: page.evaluate(DROP, base64.b64encode(town.read_bytes()).decode()))
    page.get_by_text("dropped.png · 180 × 120 pixels").wait_for()
    assert not page.locator("#chips button").count()
    assert segment(page, "water, land") == ["water", "land"]
    Image.new("L", (700, 300)).save(tmp_path / "large.png")
    open_file(page, tmp_path / "large.png")
    page.get_by_text("scaled down from 700 x 300 pixels").wait_for()
    Image.new("L", (700, 700)).save(tmp_path / "huge.png")
    page.set_input_files("#file", tmp_path / "huge.png")
    page.get_by_text("huge.png has 700 x 700 pixels, more than the 400,000 allowed").wait_for()
    assert page.locator(".shot").count() == 3

    page.reload(wait_until="domcontentloaded")
    page.get_by_text("large.png · ").wait_for()
    assert page.locator(".shot").count() == 3
    changed(page, page.get_by_role("button", name="Show dropped.png").click)
    assert page.locator("#chips .name").all_inner_texts() == ["water", "land"]
    assert page.locator("#words").input_value() == "water, land"
    changed(page, page.get_by_role("button", name="Close dropped.png").click)
    assert page.locator(".shot").count() == 2


@needs_chromium
def test_an_image_that_was_closed_for_others_is_told(visit, served):
    page = visit()
    for session in list(served[1].sessions._sessions.values()):
        served[1].sessions.remove(session)
    page.get_by_role("button", name="Segment").click()
    page.get_by_text("Your image was closed, because the server needed room").wait_for()
    page.get_by_text("No image yet: drop one, or take an example.").wait_for()
    changed(page, page.get_by_role("button", name="Road in a forest").click)
    assert segment(page, "road") == ["none", "road"]


@needs_chromium
def test_who_waits_sees_the_place_in_the_queue_and_may_stop(visit, served, monkeypatch):
    """With one job at a time, waiting visitors see their place in the queue, may stop, and get their answer in turn."""
    first, second, third = visit(), visit(), visit(390, 844)
    go = threading.Event()
    segment_now = Session.segment
    monkeypatch.setattr(Session, "segment", lambda *args, **more: go.wait(120) and segment_now(*args, **more))
    for page, said in ((first, "Segmenting"), (second, "Waiting: place 1 of 1"), (third, "Waiting: place 2 of 2")):
        page.locator("#words").fill("river, tree")
        page.wait_for_timeout(600)
        page.get_by_role("button", name="Segment").click()
        page.locator("#job", has_text=said).wait_for()
    second.get_by_role("button", name="Stop").click()
    second.get_by_text("Stopped.").wait_for()
    third.locator("#job", has_text="Waiting: place 1 of 1").wait_for()
    first.keyboard.press("Escape")
    first.get_by_text("Stopped.").wait_for()
    go.set()
    third.locator("#chips", has_text="river").wait_for()
    assert "vegetation" in first.locator("#chips").inner_text(), "stopping must keep the result that was shown before"
    assert "vegetation" in second.locator("#chips").inner_text()


@needs_chromium
def test_two_people_at_once_and_their_folders_go(visit, served, town, tmp_path):
    other = tmp_path / "field.png"
    Image.fromarray(draw_scene(np.random.default_rng(1), 90, 100)[0]).save(other)
    first, second = visit(), visit(390, 844)
    open_file(first, town)
    open_file(second, other)
    assert segment(first, "water,road") == ["water", "road"]
    assert segment(second, "vegetation,land") == ["vegetation", "land"]
    assert first.locator("#chips .name").all_inner_texts() == ["water", "road"]
    own = first.locator("#map").get_attribute("data-shown").split(" ")[0]
    assert second.evaluate("key => fetch(`/api/images/${key}`).then(answer => answer.status)", own) == 404
    before = set(served[1].root.glob("session_*"))
    changed(first, first.get_by_role("button", name="Close town.png").click)
    assert len(before - set(served[1].root.glob("session_*"))) == 1, "closing an image must delete its folder"
    assert not list(served[1].root.glob("upload_*")), "uploaded files must be deleted"


def test_options_become_limits(app):
    args = app.parser().parse_args(
        ["--max-upload=2mb", "--sessions=3", "--time-limit=5", "--max-words=7", "--answerer=x", "--images=2"]
    )
    assert app.limits_of(args) == Limits(upload_bytes=2 << 20, sessions=3, seconds=5, words=7, images=2)
    assert args.answerer == "x"
    assert app.limits_of(app.parser().parse_args([])) == Limits()
