"""Tests of requests whose image is closed before they end: they get an answer, or an error that says so."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, draw_scene

from skysense_o.interactive.closing import ClosedSession
from skysense_o.interactive.limits import Limits
from skysense_o.interactive.opening import OpenedImage, open_upload
from skysense_o.interactive.page import Page
from skysense_o.interactive.session import Session
from skysense_o.interactive.visitors import OpenImage

pytest.importorskip("fastapi", reason='the web page needs fastapi: pip install -e ".[app]"')
from fastapi.testclient import TestClient

from skysense_o.interactive import pixel_routes
from skysense_o.interactive.access import COOKIE
from skysense_o.interactive.routes import create_app

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def page(words_only, tmp_path_factory):
    return Page(words_only, tmp_path_factory.mktemp("page"), Limits(images=50, seconds=600))


@pytest.fixture
def client(page):
    client = TestClient(create_app(page), raise_server_exceptions=False)
    client.get("/api/state")
    return client


@pytest.fixture(scope="module")
def answered(words_only):
    """Return (image, segmentation by two words) for a plain image and for a scene."""
    opened = [OpenedImage(draw_scene(np.random.default_rng(0), 60, 90)[0], "town.png")]
    opened += [open_upload(ROOT / "demo/foz_30m.tif")]
    return [(image, Session(words_only, image).segment(["water", "land"])) for image in opened]


def add(page: Page, client: TestClient, image: OpenedImage, found) -> OpenImage:
    """Open an image for the client's visitor, with an existing segmentation."""
    session = Session(page.predictor, image, page.root / f"session_{time.monotonic_ns()}")
    session.found = found
    session.proposal_labels = found.labels.astype(np.uint8)
    (session.folder / f"{image.stem}_results.zip").write_bytes(b"PK" * 5_000_000)
    page._give_map(session)
    shown = OpenImage(session)
    page.visitors.add(page.visitors.find(client.cookies[COOKIE]), shown)
    return shown


def test_who_began_to_use_a_session_may_finish(answered, words_only, tmp_path):
    session = Session(words_only, answered[0][0], tmp_path / "session")
    with session.in_use():
        with session.in_use():
            session.close()
            assert session.closed
            with pytest.raises(ClosedSession), session.in_use():
                pass
        assert session.image.rgb.shape == (60, 90, 3)
        assert session.folder.is_dir()
    assert session.image is None
    assert not session.folder.exists()
    session.close()


def test_a_map_that_is_under_way_is_sent_although_its_image_is_closed(page, client, answered, monkeypatch):
    """Regression: the answer used to be status 500, because the image's memory had been freed."""
    shown, begun, closed = add(page, client, *answered[0]), threading.Event(), threading.Event()
    real = pixel_routes.class_png

    def slow(session):
        begun.set()
        assert closed.wait(60)
        return real(session)

    monkeypatch.setattr(pixel_routes, "class_png", slow)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.get(f"/api/images/{shown.key}/classes.png")))
    thread.start()
    assert begun.wait(60)
    assert client.delete(f"/api/images/{shown.key}").status_code == 200
    assert shown.session.closed
    closed.set()
    thread.join(60)
    assert answers[0].status_code == 200
    assert shown.session.image is None, "the closed image's memory must be freed after the answer"
    assert client.get(f"/api/images/{shown.key}/classes.png").status_code == 404


def test_a_request_at_work_ends_although_its_image_is_closed_and_the_next_is_told(page, client, answered):
    shown = add(page, client, *answered[0])
    state = page.locked(shown, lambda image: image.session.close())
    assert state["name"] == "town.png"
    with pytest.raises(ValueError, match="Your image was closed"):
        page.locked(shown, lambda image: None)


def test_closing_at_any_moment_is_no_error_of_the_server(page, client, answered):
    """Regression: requests got status 500 if a parallel request closed their image."""
    chance, statuses = random.Random(0), []
    paths = ("", "/image.jpg", "/thumbnail.jpg", "/classes.png", "/regions.png", "/part?x=9&y=9", "/run.json")
    for k in range(16):
        shown = add(page, client, *answered[k % 2])
        asked = [f"/api/images/{shown.key}{path}" for path in (*paths, "/results.zip", "/tiles/9/180/220.png")]

        def ask(address: str) -> None:
            answer = client.get(address)
            statuses.append((answer.status_code, address.split("/", 4)[-1]))

        threads = [threading.Thread(target=ask, args=(address,)) for address in [*asked, "/api/state"]]
        chance.shuffle(threads)
        for thread in threads:
            thread.start()
        time.sleep(chance.random() * 0.1)
        statuses.append((client.delete(f"/api/images/{shown.key}").status_code, "close"))
        for thread in threads:
            thread.join(60)
        assert not shown.session.folder.exists()
    assert [status for status in statuses if status[0] not in (200, 204, 404)] == []
    assert {status for status, _ in statuses} >= {200, 404}
