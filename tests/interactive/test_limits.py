"""Tests of the web page's limits on memory, time, request sizes and requests that uploaded files cause; of signals."""

from __future__ import annotations

import asyncio
import gc
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_scene
from PIL import Image

from skysense_o.image_io import ImageError
from skysense_o.interactive.current_request import StoppedByUser, TimedRequest, TooLate, check_time, report_progress
from skysense_o.interactive.limits import Limits, parse_size
from skysense_o.interactive.opening import UPLOADS, OpenedImage, open_upload
from skysense_o.interactive.session import Session
from skysense_o.interactive.session_store import SessionStore
from skysense_o.interactive.timed_work import MOST_LATE, TimedWork
from skysense_o.vocabulary import Vocabulary

pytestmark = pytest.mark.faults

# Addresses in uploaded files


@pytest.fixture
def listener():
    """Start a local HTTP server; return (port, list of the paths requested from it)."""
    requested = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port, requested
    server.shutdown()
    server.server_close()


def hostile_files(port: int) -> dict[str, str]:
    address = f"http://127.0.0.1:{port}"
    tiles = f'<Service name="TMS"><ServerUrl>{address}/t/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>'
    window = (
        "<DataWindow><UpperLeftX>-10</UpperLeftX><UpperLeftY>10</UpperLeftY><LowerRightX>10</LowerRightX>"
        "<LowerRightY>-10</LowerRightY><SizeX>64</SizeX><SizeY>64</SizeY></DataWindow>"
    )
    vrt = (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return {
        "wmts": f"<GDAL_WMTS><GetCapabilitiesUrl>{address}/wmts?</GetCapabilitiesUrl></GDAL_WMTS>",
        "wcs": f"<WCS_GDAL><ServiceURL>{address}/wcs?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>",
        "wms": f"<GDAL_WMS>{tiles}{window}</GDAL_WMS>",
        "vrt": vrt.format(f"/vsicurl/{address}/a.tif"),
        "vrt_of_wms": vrt.format(f"&lt;GDAL_WMS&gt;{address}"),
        "plain": f"{address}/a.tif",
        "wmts_prefix": f"WMTS:{address}/wmts",
    }


@pytest.mark.parametrize("suffix", UPLOADS)
def test_no_upload_causes_a_request(listener, tmp_path, suffix):
    port, requested = listener
    for name, text in hostile_files(port).items():
        path = tmp_path / f"{name}{suffix}"
        path.write_text(text)
        with pytest.raises(
            ImageError,
            match=f"^{name}{suffix} is (not an image that can be read|a VRT raster, which is not accepted here)",
        ):
            open_upload(path)
    assert requested == []


def test_the_same_files_do_cause_requests_where_remote_data_is_allowed(listener, tmp_path):
    """The same files do cause requests where remote data is allowed, so the test that uploads cause none can fail."""
    pytest.importorskip("rasterio", reason="needs the extra geo")
    from skysense_o.image_io.gdal_access import gdal_settings, open_dataset

    port, requested = listener
    (tmp_path / "a.tif").write_text(hostile_files(port)["wmts"])
    with gdal_settings(remote=True), pytest.raises(ImageError):
        open_dataset(tmp_path / "a.tif", remote=True)
    assert requested


# Words and sizes


def test_words_are_limited_in_number_and_length():
    limits = Limits(words=3, word_length=10)
    limits.check_words(["a|b", "0123456789"])
    with pytest.raises(ValueError, match="4 words were given, and 3 are allowed here"):
        limits.check_words(["a|b|c", "d"])
    with pytest.raises(ValueError, match=r"the word '01234567890'... has 11 characters; 10 are allowed here"):
        limits.check_words(["01234567890"])
    with pytest.raises(ValueError, match="not valid Unicode"):
        limits.check_words(["\udc80"])
    with pytest.raises(ValueError, match="jobs 0 is out of range"):
        Limits(jobs=0)


def test_sizes_are_read_with_their_unit():
    assert [parse_size(text) for text in ("3b", "2kb", "64MB", " 1 gb ")] == [3, 2048, 64 << 20, 1 << 30]
    for text in ("", "64", "mb", "-1mb", "1.5gb", "1 tb"):
        with pytest.raises(ValueError, match="is not understood: write a whole number and b, kb, mb or gb"):
            parse_size(text)


# Memory


def reachable_bytes(session: Session) -> int:
    """Return the bytes of all arrays and tensors that a session refers to, except the model's; each counts once."""
    seen, total, pending = {id(session.predictor), id(session.predictor.model)}, 0, [session]
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(value))
        if isinstance(value, (np.ndarray, torch.Tensor)):
            total += value.nbytes
        else:
            pending += gc.get_referents(value)
    return total


def test_a_session_keeps_nothing_of_a_size_per_class(mini, tmp_path):
    image = OpenedImage(draw_scene(np.random.default_rng(0), 200, 300)[0], "town.png")
    session = Session(mini, image, tmp_path / "session")
    session.segment(["water"])
    # The first box and the first click store further features of the image, so do both before measuring.
    session.draw_box(10, 10, 90, 60)
    session.clear()
    session.click(20, 20)
    session.clear()
    few = session.nbytes
    session.segment([f"class {i}" for i in range(31)])
    assert session.nbytes == few, "a session with 31 classes must take no more memory than with one class"
    assert session.found.labels.dtype == np.uint8
    assert session.found.probabilities is None
    assert len(session.find_all_regions(Vocabulary.parse("water,road"), side=6, iou_pred=0, stability_score=0)) > 1
    session.draw_box(10, 10, 90, 60)
    session.add_example()
    assert session.nbytes == reachable_bytes(session)
    pixels = 200 * 300
    assert session.nbytes - few <= 2 * pixels + 10_000, (
        "a mask, the map of all regions and an example must take at most 2 bytes per pixel and 10 kB"
    )
    session.close()
    assert session.nbytes == 0
    assert reachable_bytes(session) == 0


class FakeSession:
    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.closed, self.lock = nbytes, False, threading.Lock()

    def close(self) -> None:
        self.closed, self.nbytes = True, 0


def test_the_session_that_was_idle_longest_is_closed():
    store = SessionStore(3, 100)
    first, second, third, fourth = (FakeSession(20) for _ in range(4))
    for session in (first, second, third, first, fourth):
        store.used(session)
    assert [s.closed for s in (first, second, third, fourth)] == [False, True, False, False]
    fourth.nbytes = 70
    third.lock.acquire()
    store.used(fourth)
    assert first.closed
    assert not third.closed, "a session that is processing a request must not be closed"
    assert store.nbytes == 90
    store.remove(third)
    store.remove(None)
    assert third.closed
    assert len(store) == 1


# Time


def test_a_request_that_is_silent_ends_for_its_user_and_nobody_else_waits():
    work, silent = TimedWork(0.3), threading.Event()
    begin = time.monotonic()
    with pytest.raises(TooLate, match=r"took longer than 0.3 s, the time limit"):
        work(silent.wait, 60)
    assert time.monotonic() - begin < 5
    assert work.late == 1
    assert work(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(KeyError):
        work({}.__getitem__, "what it raises comes through")
    for _ in range(MOST_LATE - 1):
        with pytest.raises(TooLate):
            work(silent.wait, 60)
    with pytest.raises(TooLate, match="the server is busy"):
        work(int)
    silent.set()
    for _ in range(500):
        if not work.late:
            break
        time.sleep(0.01)
    assert work(int) == 0


def test_work_that_is_stopped_ends_and_tells_how_far_it_was():
    shares, begun = [], threading.Event()
    request = TimedRequest(shares.append)

    def forever():
        report_progress(0.25)
        begun.set()
        while True:
            check_time()
            time.sleep(0.01)

    work = TimedWork(600)
    threading.Thread(target=lambda: begun.wait(60) and request.stop.set_result(None), daemon=True).start()
    with pytest.raises(StoppedByUser):
        work(forever, request=request)
    assert shares == [0.25]
    for _ in range(500):
        if not work.late:
            break
        time.sleep(0.01)
    assert work.late == 0, "the thread of the stopped request must have ended"


def test_late_work_stops_at_its_next_model_call(mini, tmp_path):
    image = OpenedImage(draw_scene(np.random.default_rng(0), 60, 90)[0], "town.png")
    session, asked = Session(mini, image, tmp_path / "session"), []

    def forever():
        while True:
            asked.append(1)
            session.segment(["water"])

    work = TimedWork(0.5)
    with pytest.raises(TooLate):
        work(forever)
    for _ in range(3000):
        if not work.late:
            break
        time.sleep(0.01)
    assert work.late == 0
    assert asked
    check_time()  # there is no time limit outside a request
    session.close()


# Requests


def answer_of(limits: dict, path: str, chunks: list[bytes], declared: int | None = None, folder="/nowhere"):
    """Send a request; return (status, or None where it reached the application; bodies the application received)."""
    from skysense_o.interactive.request_limits import RequestLimits

    received, sent = [], []

    async def app(scope, receive, send):
        while True:
            message = await receive()
            received.append(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break

    pending = [{"type": "http.request", "body": c, "more_body": i + 1 < len(chunks)} for i, c in enumerate(chunks)]

    async def receive():
        return pending.pop(0)

    async def send(message):
        sent.append(message)

    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(RequestLimits(app, folder, **limits)(scope, receive, send))
    return (sent[0]["status"] if sent else None), b"".join(received)


def test_large_requests_are_refused_before_they_are_read(tmp_path):
    pytest.importorskip("starlette")
    limits = {"upload_bytes": 100_000, "request_bytes": 1000, "folder_bytes": 10}
    join, upload = "/api/images/x/segment", "/api/upload"
    assert answer_of(limits, join, [b'{"a":', b" 1}"]) == (None, b'{"a": 1}')
    assert answer_of(limits, join, [b"x"], declared=1001) == (413, b"")
    assert answer_of(limits, join, [b"x" * 600] * 2) == (413, b"")
    assert answer_of(limits, upload, [b"x"], declared=10**9) == (413, b"")
    assert answer_of(limits, upload, [b"x" * 90_000] * 3)[1] == b"x" * 90_000, (
        "data beyond the size limit must not reach the application"
    )
    (tmp_path / "full").write_bytes(b"x" * 11)
    assert answer_of(limits, upload, [b"x"], folder=tmp_path) == (507, b"")


def test_uploads_that_are_under_way_count_as_well(tmp_path):
    pytest.importorskip("starlette")
    from skysense_o.interactive.request_limits import RequestLimits

    scope = {"type": "http", "method": "POST", "path": "/api/upload", "headers": [(b"content-length", b"60")]}
    sent = []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):  # a second upload begins while the first one arrives
        if not sent:
            await limits(scope, receive, send)

    limits = RequestLimits(app, tmp_path, upload_bytes=100, request_bytes=100, folder_bytes=50)
    asyncio.run(limits(scope, None, send))
    assert sent[0]["status"] == 507
    assert limits.expected_bytes == 0


def test_a_file_given_as_an_address_is_refused():
    pytest.importorskip("starlette")
    limits = {"upload_bytes": 1000, "request_bytes": 10_000_000, "folder_bytes": 10}
    join = "/gradio_api/queue/join"  # an address that the review page requests
    file = {"path": "http://127.0.0.1/x.png", "meta": {"_type": "gradio.FileData"}}
    assert answer_of(limits, join, [json.dumps({"data": [None, [file]]}).encode()])[0] == 400
    file["path"] = " HTTPS://example.org/x.png"
    assert answer_of(limits, join, [json.dumps({"data": [file]}).encode()])[0] == 400
    assert answer_of(limits, join, [b"[" * 200_000 + b"]" * 200_000])[0] == 400
    assert answer_of(limits, join, [b'{"data": ["http://in.words"]}'])[0] is None


# Signals


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["at once", "serving"])
def test_a_signal_leaves_nothing_behind(tmp_path, number, when):
    pytest.importorskip("fastapi")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "demo/app.py"), "--port", str(port), "--answerer", ""]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as app:
        if when == "serving":
            address = app.stdout.readline().split(" is at ")[1].split(" ")[0]
            Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
            data = (tmp_path / "a.png").read_bytes()
            (tmp_path / "a.png").unlink()
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            opener.open(f"{address}api/state", timeout=60).read()
            request = urllib.request.Request(f"{address}api/upload?name=a.png", data, method="POST")
            assert b'"name": "a.png"' in opener.open(request, timeout=300).read()
            assert list(tmp_path.rglob("session_*"))
        else:
            while not list(tmp_path.glob("skysense_o_page_*")):
                assert app.poll() is None
                time.sleep(0.01)
        app.send_signal(number)
        _, err = app.communicate(timeout=120)
        assert app.returncode == 128 + number, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
