"""Tests of the web page's server without a browser: access rights, refused requests, content of tiles and maps."""

from __future__ import annotations

import asyncio
import io
import json
import time

import numpy as np
import pytest
from conftest import ROOT, draw_scene
from PIL import Image

from skysense_o.interactive.limits import Limits
from skysense_o.interactive.page import Example, Page
from skysense_o.interactive.session_store import SessionStore
from skysense_o.interactive.timed_work import TimedWork
from skysense_o.interactive.visitors import OpenImage, Visitors
from skysense_o.vocabulary import Vocabulary

pytest.importorskip("fastapi", reason='the web page needs fastapi: pip install -e ".[app]"')
from fastapi.testclient import TestClient

from skysense_o.interactive.job_queue import BUSY, JobQueue
from skysense_o.interactive.routes import create_app


@pytest.fixture(scope="module")
def page(words_only, tmp_path_factory):
    examples = [Example("River", ROOT / "demo/foz_30m.tif", "water, land")]
    limits = Limits(upload_bytes=1 << 20, request_bytes=2000, images=2, seconds=600)
    page = Page(words_only, tmp_path_factory.mktemp("page"), limits, examples=examples)
    page.naming_vocabulary = Vocabulary.parse("water,road")
    return page


@pytest.fixture
def visitor(page):
    """Return a function that opens the page as a new visitor and returns the HTTP client."""

    def come() -> TestClient:
        client = TestClient(create_app(page))
        assert client.get("/api/state").status_code == 200
        return client

    return come


def picture() -> bytes:
    data = io.BytesIO()
    Image.fromarray(draw_scene(np.random.default_rng(0), 60, 90)[0]).save(data, "png")
    return data.getvalue()


def result(answer) -> dict:
    """Return the last line of a job's response stream."""
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text.splitlines()[-1])


def upload(client, name: str = "town.png") -> str:
    return result(client.post("/api/upload", params={"name": name}, content=picture()))["result"]["id"]


def test_the_page_loads_nothing_from_elsewhere_and_nobody_frames_it(visitor):
    answer = visitor().get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    web = ROOT / "skysense_o/interactive/web"
    for path in [*web.glob("*.js"), *web.glob("*.html"), *web.glob("*.css")]:
        assert "//" not in path.read_text().replace("// ", "").replace("://", "") or "http" not in path.read_text(), (
            path
        )
    assert (web / "vendor/leaflet/LICENSE").read_text().startswith("BSD 2-Clause License")


def test_a_basemap_is_what_the_server_was_started_with(words_only, tmp_path, call):
    page = Page(words_only, tmp_path, basemap="https://{s}.tiles.example.org/{z}/{x}/{y}.png")
    client = TestClient(create_app(page))
    assert client.get("/api/state").json()["about"]["basemap"] == page.basemap
    assert (
        "img-src 'self' blob: data: https://*.tiles.example.org;" in client.get("/").headers["content-security-policy"]
    )
    code, _, err = call("demo/app.py", "--basemap", "tiles.png")
    assert code == 2
    assert "--basemap 'tiles.png' is not an address of map tiles" in err


def test_an_image_is_its_visitors_own(visitor):
    mine, other = visitor(), visitor()
    key = upload(mine)
    assert mine.get(f"/api/images/{key}").json()["name"] == "town.png"
    for path in ("", "/image.jpg", "/classes.png", "/part?x=1&y=1", "/run.json", "/results.zip"):
        assert other.get(f"/api/images/{key}{path}").status_code == 404
    assert other.post(f"/api/images/{key}/segment", json={"words": "water"}).status_code == 404
    assert other.delete(f"/api/images/{key}").json()["images"] == []
    assert mine.get("/api/state").json()["current"] == key
    cookie = mine.get("/api/state").headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    mine.cookies.clear()
    answer = mine.post("/api/examples/0")
    assert (answer.status_code, "Reload it" in answer.json()["error"]) == (409, True)


def test_one_person_has_so_many_images(visitor, page):
    client = visitor()
    keys = [upload(client, f"{i}.png") for i in range(3)]
    assert [image["id"] for image in client.get("/api/state").json()["images"]] == keys[1:], (
        "the visitor's oldest image must be closed"
    )
    assert client.get(f"/api/images/{keys[0]}").status_code == 404


def test_changes_for_other_sites_are_refused(visitor):
    client = visitor()
    for site in ("cross-site", "same-site"):
        answer = client.post("/api/examples/0", headers={"sec-fetch-site": site})
        assert answer.status_code == 403
    assert client.get("/api/state", headers={"sec-fetch-site": "cross-site"}).status_code == 403, (
        "this request would create a visitor, so it must be refused from other sites"
    )
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200, (
        "a link on another site must open the page"
    )


def test_uploads_are_limited_named_and_checked(visitor, page):
    client = visitor()
    before = set(page.root.iterdir())
    assert client.post("/api/upload", params={"name": "a.png"}, content=bytes(2 << 20)).status_code == 413
    chunks = (bytes(1 << 16) for _ in range(40))
    assert client.post("/api/upload", params={"name": "a.png"}, content=chunks).status_code == 413
    for name in ("a.txt", "a.vrt", "..", "", "a.png/"):
        assert client.post("/api/upload", params={"name": name}, content=b"x").status_code == 415, name
    answer = client.post("/api/upload", params={"name": "a.png"}, content=b"no image")
    assert result(answer)["error"].startswith("a.png is not an image that can be read")
    assert set(page.root.iterdir()) == before, "refused uploads must leave no files"
    key = upload(client, "../..\\up/<b>&\x00é.png")
    assert client.get(f"/api/images/{key}").json()["name"] == "_b___é.png"


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("segment", '{"words": "water", "threshold": 2}'),
        ("segment", '{"words": "water", "threshold": NaN}'),
        ("segment", '{"words": ["water"]}'),
        ("segment", '{"words": "water", "path": "x"}'),
        ("click", '{"x": 1e999, "y": 0}'),
        ("box", '{"x0": 1}'),
        ("ask", "{"),
    ],
)
def test_requests_that_make_no_sense_are_refused(visitor, action, body):
    client = visitor()
    key = upload(client)
    answer = client.post(f"/api/images/{key}/{action}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]
    assert client.post(f"/api/images/{key}/nothing").status_code == 404


def test_errors_are_told_without_what_a_browser_should_not_see(visitor, page, monkeypatch):
    client = visitor()
    key = upload(client)
    ask = lambda **body: client.post(f"/api/images/{key}/segment", json={"words": "water", **body})  # noqa: E731
    assert "a class name is blank" in result(ask(words="water,,"))["error"]
    assert "has no colour after its #" in result(ask(words="road #red"))["error"]
    assert ask(words="x" * 3000).status_code == 413

    def broken(*_, **__):
        raise RuntimeError("/secret/place")

    monkeypatch.setattr("skysense_o.interactive.session.Session.segment", broken)
    answer = ask()
    assert "server's log says why" in result(answer)["error"]
    assert "secret" not in answer.text
    assert "no model for questions" in result(client.post(f"/api/images/{key}/ask", json={"question": "?"}))["error"]


def test_words_only_weights_take_boxes_and_say_so(visitor):
    client = visitor()
    about = client.get("/api/state").json()["about"]
    assert (about["prompts"], about["questions"], about["scene_names"]) == (False, False, False)
    key = upload(client)
    box = {"x0": 50.2, "y0": 40, "x1": 10.7, "y1": 9.5}
    state = result(client.post(f"/api/images/{key}/box", json=box))["result"]
    assert state["region"]["pixels"] == 41 * 31, "the region must contain every pixel that the box touches"
    assert state["region"]["box"] == [[10, 9], [51, 9], [51, 40], [10, 40]]
    assert len(state["region"]["names"]) == 2
    assert "take words only" in result(client.post(f"/api/images/{key}/click", json={"x": 1, "y": 1}))["error"]
    assert client.post(f"/api/preview/{key}/click", json={"x": 1, "y": 1}).status_code == 204
    assert client.post(f"/api/preview/{key}/box", json=box).status_code == 200
    outside = {"x0": -9, "y0": 5, "x1": -2, "y1": 9}
    assert client.post(f"/api/preview/{key}/box", json=outside).status_code == 204, (
        "a box outside the image contains no pixel, so it must have no mask"
    )


# Maps


@pytest.fixture(scope="module")
def scene():
    """Open foz_30m.tif as the map view shows it."""
    pytest.importorskip("rasterio", reason="needs the extra geo")
    from skysense_o.interactive.map_view import MapView

    view = MapView(ROOT / "demo/foz_30m.tif")
    yield view
    view.close()


def test_positions_go_to_the_map_and_back(scene):
    xy = np.array([[0, 0], [300, 0], [150.5, 140.25], [299, 279]], float)
    assert np.allclose([scene.pixel(*place) for place in scene.places(xy)], xy, atol=1e-4)
    (south, west), (north, east) = scene.bounds
    import rasterio
    from rasterio.warp import transform

    with rasterio.open(ROOT / "demo/foz_30m.tif") as file:
        (longitude,), (latitude,) = transform(file.crs, "EPSG:4326", *([v] for v in file.xy(140, 150)))
    assert south < latitude < north
    assert west < longitude < east
    assert abs(scene.described()["gsd"] - 30) < 0.01


def tile_of(zoom: int, latitude: float, longitude: float) -> tuple[float, float]:
    """Return the position of longitude and latitude in units of tiles, by the formula in the OpenStreetMap wiki."""
    y = (1 - np.arcsinh(np.tan(np.radians(latitude))) / np.pi) / 2
    return (longitude + 180) / 360 * 2**zoom, y * 2**zoom


def test_a_tile_holds_the_pixels_of_its_place(scene):
    import rasterio
    from rasterio.warp import transform

    from skysense_o.image_io import read_image

    rgb, zoom = read_image(ROOT / "demo/foz_30m.tif").filled(), scene.native_zoom
    with rasterio.open(ROOT / "demo/foz_30m.tif") as file:
        for row, column in ((60, 80), (140, 150), (200, 240)):
            (longitude,), (latitude,) = transform(file.crs, "EPSG:4326", *([v] for v in file.xy(row, column)))
            x, y = tile_of(zoom, latitude, longitude)
            tile = scene.tile(zoom, int(x), int(y))
            pixel = tile[int(y % 1 * 256), int(x % 1 * 256)]
            around = rgb[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3).astype(int)
            assert pixel[3] == 255
            assert (pixel[:3] >= around.min(0) - 2).all()
            assert (pixel[:3] <= around.max(0) + 2).all()
    assert scene.tile(zoom, 0, 0) is None
    x, y = tile_of(6, *np.mean(scene.bounds, axis=0))
    assert 0 < (scene.tile(6, int(x), int(y))[..., 3] > 0).sum() < 100, (
        "at a low zoom level the scene must cover only a few pixels"
    )
    with pytest.raises(ValueError, match="tile 3/8/0 is out of range"):
        scene.tile(3, 8, 0)


def test_labels_lie_on_the_map_where_their_pixels_do(scene):
    labels = np.zeros(scene.raster.size, np.uint8)
    labels[100:120, 50:70] = 7
    warped = scene.warp(labels, 255)
    x, y = np.round(scene.places(np.array([[60.0, 110.0]]))[0]).astype(int)
    assert warped[y, x] == 7
    assert (warped == 7).sum() == pytest.approx(400, rel=0.15)
    assert set(np.unique(warped)) == {0, 7, 255}, "pixels outside the scene must have a label of their own"


def test_longitudes_may_run_from_0_to_360(tmp_path):
    """Regression: tiles of a scene with longitudes above 180 used to be empty, and clicks missed the scene."""
    scenes = pytest.importorskip("made_scenes", reason="needs the extra geo")
    from rasterio.transform import from_origin

    from skysense_o.interactive.map_view import MapView

    grid = {"crs": "EPSG:4326", "transform": from_origin(200, 50, 1e-4, 1e-4)}
    view = MapView(scenes.write_scene(tmp_path / "s.tif", scenes.fields(40, 60), **grid))
    (south, west), (north, east) = view.bounds
    assert (west, east) == pytest.approx((-160, -159.994))
    xy = np.array([[30.0, 20.0], [0.0, 0.0], [60.0, 40.0]])
    assert np.allclose([view.pixel(*place) for place in view.places(xy)], xy, atol=1e-3)
    x, y = tile_of(view.native_zoom, (south + north) / 2, (west + east) / 2)
    assert view.tile(view.native_zoom, int(x), int(y))[..., 3].any()
    view.close()


def test_a_scene_that_reaches_beyond_its_projection_is_shown_without_a_map(words_only, tmp_path):
    """Regression: opening a satellite image of the whole earth's disc used to give a server error."""
    scenes = pytest.importorskip("made_scenes", reason="needs the extra geo")
    from rasterio.transform import from_origin

    disk = {"crs": "+proj=geos +h=35785831 +lon_0=0 +sweep=y", "transform": from_origin(-6e6, 6e6, 2e5, 2e5)}
    scenes.write_scene(tmp_path / "earth.tif", scenes.fields(40, 60), **disk)
    page = Page(words_only, tmp_path, Limits(seconds=600))
    client = TestClient(create_app(page))
    client.get("/api/state")
    content = (tmp_path / "earth.tif").read_bytes()
    state = result(client.post("/api/upload", params={"name": "earth.tif"}, content=content))["result"]
    assert state["map"] is None
    assert "shown without a map: its projection cannot be shown on this map" in state["notes"][-1]


def test_a_scene_is_served_as_a_map(visitor):
    pytest.importorskip("rasterio", reason="needs the extra geo")
    client = visitor()
    state = result(client.post("/api/examples/0"))["result"]
    base = f"/api/images/{state['id']}"
    height, width = state["map"]["shape"]
    labels = np.asarray(Image.open(io.BytesIO(client.get(f"{base}/classes.png").content)))
    assert labels.shape == (height, width, 3)
    part = client.get(f"{base}/part", params={"x": width / 2, "y": height / 2}).json()
    assert part["area_m2"] == pytest.approx(part["pixels"] * 900)
    assert client.get(f"{base}/part", params={"x": -5, "y": 0}).status_code == 422
    last = client.get(f"{base}/part", params={"name": part["name"], "number": part["parts"]}).json()
    assert last["pixels"] <= part["pixels"]
    assert client.get(f"{base}/part", params={"name": part["name"], "number": 0}).status_code == 422
    x, y = tile_of(12, *np.mean(state["map"]["bounds"], axis=0))
    answer = client.get(f"{base}/tiles/12/{int(x)}/{int(y)}.png")
    assert Image.open(io.BytesIO(answer.content)).size == (256, 256)
    assert client.get(f"{base}/tiles/12/0/0.png").status_code == 204
    assert client.get(f"{base}/tiles/12/9999/0.png").status_code == 404
    again = result(client.post("/api/examples/0"))["result"]
    assert again["id"] == state["id"], "opening the same example again must return the same image"
    run = client.get(f"{base}/run.json")
    assert "attachment" in run.headers["content-disposition"]
    assert run.json()["words"] == [["water"], ["land"]]


def test_a_scaled_scene_is_a_map_of_all_its_pixels(words_only, tmp_path):
    pytest.importorskip("rasterio", reason="needs the extra geo")
    page = Page(words_only, tmp_path, Limits(pixels=20_000, images=2, seconds=600))
    client = TestClient(create_app(page))
    client.get("/api/state")
    content = (ROOT / "demo/foz_30m.tif").read_bytes()
    state = result(client.post("/api/upload", params={"name": "foz.tif"}, content=content))["result"]
    assert "scaled down from 300 x 280 pixels" in state["notes"][-1]
    assert state["width"] * state["height"] <= 20_000
    assert state["map"]["gsd"] == pytest.approx(30 * 300 / state["width"], rel=0.02)
    assert state["map"]["native_zoom"] == 13, "tiles must be cut from the file at full resolution"
    words = {"words": "water,land"}
    rows = result(client.post(f"/api/images/{state['id']}/segment", json=words))["result"]["classes"]
    assert sum(row["area_m2"] for row in rows) == pytest.approx(300 * 280 * 900, rel=0.01)
    assert "result" in result(client.post(f"/api/images/{state['id']}/files"))
    assert client.get(f"/api/images/{state['id']}/results.zip").content.startswith(b"PK")


# The queue and the visitors


def test_the_queue_tells_places_and_refuses_when_it_is_full():
    async def play():
        queue, held = JobQueue(TimedWork(60), jobs=1, most=1), True

        async def here() -> bool:
            return False

        def wait_for_it():
            while held:
                time.sleep(0.01)
            return {"done": 1}

        first = queue.stream(wait_for_it, here)
        assert await anext(first) == {"progress": None}
        second = queue.stream(lambda: {"done": 2}, here)
        assert await anext(second) == {"place": 1, "waiting": 1}
        assert [line async for line in queue.stream(dict, here)] == [{"error": BUSY}]
        assert await queue.run_if_idle(dict) is None
        held = False
        assert [line async for line in first][-1] == {"result": {"done": 1}}
        assert [line async for line in second][-1] == {"result": {"done": 2}}
        assert queue.idle
        assert await queue.run_if_idle(lambda: {"done": 3}) == {"done": 3}

    asyncio.run(play())


def test_who_leaves_the_queue_makes_room():
    async def play():
        queue, left = JobQueue(TimedWork(60), jobs=1, most=3), []

        async def gone() -> bool:
            return bool(left)

        async def here() -> bool:
            return False

        first = queue.stream(lambda: time.sleep(0.5) or {}, here)
        await anext(first)
        second = queue.stream(dict, gone)
        assert (await anext(second))["place"] == 1
        left.append(1)
        assert [line async for line in second] == []
        assert not queue.waiting
        assert [line async for line in first][-1] == {"result": {}}

    asyncio.run(play())


class FakeSession:
    def __init__(self) -> None:
        import threading

        self.nbytes, self.closed, self.lock = 1, False, threading.Lock()

    def close(self) -> None:
        self.closed = True


def test_people_are_bounded_and_forgotten_when_idle():
    visitors = Visitors(SessionStore(10, 100), images=2, most=2)
    cookies = [visitors.of(None)[0] for _ in range(2)]
    first = visitors.find(cookies[0])
    images = [OpenImage(FakeSession()) for _ in range(3)]
    for image in images:
        visitors.add(first, image)
    assert [image.session.closed for image in images] == [True, False, False]
    visitors.close(first, images[2].key)
    assert first.current == images[1].key, "after closing an image, the previous image must be shown"
    assert visitors.find("somebody else's") is None
    visitors.of(None)
    assert visitors.find(cookies[1]) is None, "the visitor who was idle longest must be forgotten"
    assert visitors.find(cookies[0]) is first
    visitors.sweep(idle=-1)
    assert len(visitors) == 0
    assert images[1].session.closed
