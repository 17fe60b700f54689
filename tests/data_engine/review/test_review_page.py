"""Tests of the review page in a real browser: keyboard shortcuts, a killed server, two reviewers, agreement."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from review_work import make_work, tile_name

pytest.importorskip("gradio", reason='the review page needs gradio: pip install -e ".[engine]"')
playwright = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[test]"')
from interactive.test_page import CHROMIUM, FLAGS, WAIT, needs_chromium

from skysense_o.data_engine.review.session import Review

TILES = 6


class Server:
    """The review page in a separate process, which can be killed and restarted at the same address."""

    def __init__(self, work) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.work, self.url = work, f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        (self.work / "names.txt").write_text("car park\n\n")
        tool, names = ROOT / "tools/data_engine.py", self.work / "names.txt"
        words = [sys.executable, tool, "review", "--work", self.work, "--port", self.port, "--names", names]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.work.parent)}
        self.process = subprocess.Popen(
            [str(word) for word in words], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert "The review is at" in self.process.stdout.readline()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def server(tmp_path):
    make_work(tmp_path / "work", TILES)
    started = Server(tmp_path / "work")
    yield started
    started.kill()


@pytest.fixture
def visit(server):
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        responses = []

        def keep(response):
            with contextlib.suppress(playwright.Error):  # an event stream that was cut off has no text
                responses.append(response.url + ("" if "image" in str(response.headers) else response.text()))

        def open_page(query="", width=1280, height=900):
            page = browser.new_context(viewport={"width": width, "height": height}).new_page()
            page.set_default_timeout(WAIT)
            page.on("response", keep)
            page.goto(server.url + query, wait_until="domcontentloaded")
            return page

        yield open_page
        browser.close()
    assert responses
    for secret in (str(server.work.parent), str(ROOT)):
        assert not [text for text in responses if secret in text], secret


def where(page) -> tuple[int, int]:
    """Return (index of the tile, region) that the page shows."""
    position = json.loads(page.locator("#where input, #where textarea").input_value())
    return int(re.match(r"town(\d+)", position["tile"])[1]), position["region"]


def wait_until_at(page, place: tuple[int, int]) -> None:
    """Wait until the page shows this (index of the tile, region)."""
    until = time.monotonic() + WAIT / 1000
    while where(page) != place:
        assert time.monotonic() < until, f"the page stays at {where(page)}"
        time.sleep(0.05)


def decided(page) -> int:
    return int(re.search(r"(\d+) of \d+ regions", page.locator("#progress").inner_text())[1])


def press(page, *keys: str, count: int | None = None) -> None:
    """Press keys and wait until the page shows `count` decided regions (default: one more than before)."""
    count = decided(page) + 1 if count is None else count
    for key in keys:
        if len(key) > 1 and key != "Enter" and key != "Escape":
            # Wait until the input has the focus, because otherwise the page would take the letters as commands.
            page.locator("#rename input:focus").wait_for()
            page.keyboard.type(key)
        else:
            page.keyboard.press(key)
    page.locator("#progress", has_text=re.compile(rf": {count} of \d+ regions")).wait_for()


def begin(page, name: str) -> None:
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    page.locator("#view img").wait_for()


@needs_chromium
def test_a_review_by_keyboard(visit, server, tmp_path):
    work = server.work
    ann = visit()
    ann.keyboard.press("Enter")
    begin(ann, "ann")
    assert "reviewer=ann&round=1" in ann.url
    assert where(ann) == (0, 1)
    ann.screenshot(path=tmp_path / "desktop.png", full_page=True)
    press(ann, "a")
    press(ann, "r", "river", "Enter")
    press(ann, "x")
    assert where(ann) == (1, 1)
    press(ann, "m", "2", "Enter")
    press(ann, "2")
    press(ann, "a")
    assert where(ann) == (2, 1)
    ann.keyboard.press("s")
    ann.keyboard.type("0 0 20 40")
    ann.keyboard.press("Enter")
    ann.get_by_text("region 4 is cut out of 1").wait_for()
    for _ in range(3):
        press(ann, "a")
    press(ann, "r", "shed", "Enter")
    before = (work / "review/decisions.jsonl").read_bytes()
    assert [json.loads(line)["action"] for line in before.splitlines()] == [
        "accept", "rename", "reject", "merge", "rename", "accept", "split", "accept", "accept", "accept", "rename",
    ]  # fmt: skip

    server.kill()
    ann.evaluate("window.before = true")
    ann.keyboard.press("x")
    ann.get_by_text("Connection to the server was lost").wait_for()
    server.start()
    ann.wait_for_function("!window.before")  # the page reconnects by itself
    ann.locator("#view img").wait_for()
    assert (work / "review/decisions.jsonl").read_bytes() == before, (
        "keys pressed while the server was dead must not record a decision"
    )
    assert where(ann) == (3, 1)
    assert decided(ann) == 10
    press(ann, "x")
    press(ann, "u", count=10)
    for _ in range(9):
        press(ann, "a")
    ann.get_by_text("Nothing is left to decide in round 1.").wait_for()

    bob = visit("?reviewer=bob", 390, 844)
    bob.locator("#view img").wait_for()
    assert bob.evaluate("document.documentElement.scrollWidth") <= 390, "on a phone the page must not scroll sideways"
    for _ in range(3 * TILES):
        press(bob, "a")
    bob.screenshot(path=tmp_path / "phone.png", full_page=True)
    bob.keyboard.press("g")
    bob.get_by_text("Krippendorff's alpha of all").wait_for()
    assert re.search(r"ann\s+bob\s+18\s+0\.\d{3}", bob.locator("#agreed").inner_text())

    second = visit("?reviewer=bob&round=2")
    second.locator("#view img").wait_for()
    asked = []
    while "Nothing is left" not in second.locator("#said").inner_text():
        asked.append(where(second))
        assert second.locator("#choice-1").inner_text().startswith("1 as ann: ")
        # Adopting ann's decision on the region that she split decides both parts.
        press(second, "1", count=decided(second) + (2 if asked[-1] == (2, 1) else 1))
    assert asked[:2] == [(0, 2), (0, 3)]
    assert {tile for tile, _ in asked} == {0, 1, 2}
    second.keyboard.press("g")
    second.get_by_text("Regions that reviewers disagree on now: 0").wait_for()

    review = Review(work)
    for tile in map(tile_name, range(TILES)):
        assert review.view("bob", tile).verdicts() == review.view("ann", tile).verdicts()
    with Image.open(tmp_path / "desktop.png") as image:
        assert np.array(image.convert("L")).std() > 20, "the screenshot must not be blank"


@needs_chromium
def test_clicks_errors_and_suggestions(visit, server):
    page = visit("?reviewer=carl")
    page.locator("#view img").wait_for()

    def click(x: int, y: int) -> None:
        image = page.locator("#view img")
        box = image.bounding_box()
        image.click(position={"x": (x + 0.5) * box["width"] / 120, "y": (y + 0.5) * box["height"] / 80})

    page.locator("#view img").evaluate("img => img.decode()")
    click(60, 60)
    page.locator("h3", has_text="Region 3").wait_for()
    page.keyboard.press("s")
    click(0, 79)
    page.get_by_text("Now the opposite corner.").wait_for()
    click(29, 40)
    page.get_by_text("region 4 is cut out of 3").wait_for()
    assert Review(server.work).log.history["carl"][-1].box == (0, 40, 30, 80)
    box = page.locator("#view img").bounding_box()
    side = box["width"] / 120
    page.mouse.move(box["x"] + 59.5 * side, box["y"] + 59.5 * side)
    page.mouse.down()
    page.mouse.move(box["x"] + 40.5 * side, box["y"] + 50.5 * side, steps=3)
    page.mouse.up()
    page.get_by_text("region 5 is cut out of 3").wait_for()
    assert Review(server.work).log.history["carl"][-1].box == (40, 50, 60, 60), (
        "the box dragged with the mouse must be recorded"
    )
    page.keyboard.press("u")
    page.get_by_text("Undone: split of region 3").wait_for()
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    click(100, 10)
    page.get_by_text("region 3 is part of 2").wait_for()
    page.keyboard.press("m")
    page.keyboard.type("99")
    page.keyboard.press("Enter")
    page.get_by_text("no region 99 to merge with").wait_for()

    page.keyboard.press("Escape")
    page.keyboard.press("r")
    page.keyboard.type("R")
    assert page.locator("#offers li").all_inner_texts() == ["road", "car park", "tree", "water"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator("#rename input").input_value() == "car park"
    press(page, "Enter")
    assert Review(server.work).log.history["carl"][-1].name == "car park"
    assert page.locator("#offers li").count() == 0
    page.keyboard.press("r")
    page.keyboard.type("Tre")
    page.locator("#offers li", has_text="tree").click()
    press(page, "Enter")
    assert Review(server.work).log.history["carl"][-1].name == "tree"

    erin = visit("?reviewer=erin")  # erin's page is open at the same time as carl's
    erin.locator("#view img").wait_for()
    for _ in range(3):
        press(erin, "a")
        press(page, "x")
    wait_until_at(page, (2, 2))
    page.keyboard.press("n")
    wait_until_at(page, (2, 3))  # otherwise the answer to "n" would clear what is typed meanwhile
    press(page, "r", "<b>odd</b>", "Enter")
    assert "is <b>odd</b>" in page.locator("#said").inner_text(), "the page must show names as text, not as HTML"
    history = Review(server.work).log.history
    assert [d.action for d in history["erin"]] == ["accept"] * 3
    assert [d.action for d in history["carl"]][-4:] == ["reject"] * 3 + ["rename"]
