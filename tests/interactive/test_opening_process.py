"""Tests that opening an image in a separate process gives the same result, and survives a hanging decoder or crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from skysense_o.image_io import ImageError
from skysense_o.interactive.current_request import StoppedByUser, TimedRequest, TooLate
from skysense_o.interactive.limits import Limits
from skysense_o.interactive.opening import open_upload
from skysense_o.interactive.opening_process import open_isolated
from skysense_o.interactive.timed_work import TimedWork

pytestmark = pytest.mark.faults
LIMITS = Limits(seconds=120)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "session"
    made.mkdir()
    return made


@pytest.fixture
def decoder(tmp_path, monkeypatch):
    """Return a function that replaces Pillow's decoders by the given code in new processes."""

    def becomes(code: str) -> None:
        (tmp_path / "code").mkdir()
        (tmp_path / "code/sitecustomize.py").write_text(
            "import ctypes, os, sys\n"
            f"def decode(*_, **__):\n    {code}\n"
            "if 'open_and_answer()' in ' '.join(sys.orig_argv):\n"
            "    import PIL.ImageFile\n    PIL.ImageFile.ImageFile.load = decode\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}")

    return becomes


@pytest.fixture
def png(tmp_path):
    rgba = np.random.default_rng(0).integers(1, 256, (30, 40, 4), np.uint8)
    rgba[:5, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_process_does_not_import_torch():
    """The process must not import torch: the import takes seconds, and the user waits for the process."""
    code = "import sys, skysense_o.interactive.opening_process; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "False"


def test_a_plain_image_is_what_open_upload_gives(png, folder):
    for limits in (LIMITS, Limits(pixels=300)):
        opened, plain = open_isolated(png, folder, limits), open_upload(png, limits.pixels)
        assert np.array_equal(opened.rgb, plain.rgb)
        assert np.array_equal(opened.valid, plain.valid)
        assert (opened.name, opened.notes, opened.scene, opened.full) == ("a.png", plain.notes, None, None)
        assert [path.name for path in folder.iterdir()] == ["opened.json"]


def test_a_scene_is_a_copy_with_all_bands_mask_and_place(tmp_path, folder):
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    from rasterio.transform import from_origin

    values = np.random.default_rng(0).integers(1, 9999, (5, 40, 60), np.uint16)
    where = {"crs": "EPSG:32612", "transform": from_origin(5e5, 49e5, 2, 2), "nodata": 7}
    with rasterio.open(tmp_path / "s.tif", "w", height=40, width=60, count=5, dtype="uint16", **where) as file:
        file.write(values)
    opened, plain = open_isolated(tmp_path / "s.tif", folder, Limits(pixels=600)), open_upload(tmp_path / "s.tif", 600)
    (tmp_path / "s.tif").unlink()
    assert np.array_equal(opened.rgb, plain.rgb)
    with rasterio.open(opened.full) as full, rasterio.open(opened.scene) as smaller:
        assert np.array_equal(full.read(), values)
        assert (full.crs, full.transform, full.nodata) == (where["crs"], where["transform"], 7)
        assert smaller.shape == opened.rgb.shape[:2]
    assert {opened.full.parent, opened.scene.parent} == {folder}


def test_errors_are_those_of_open_upload(tmp_path, folder):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    with pytest.raises(ImageError, match=r"^a.png is cut short or damaged"):
        open_isolated(tmp_path / "a.png", folder, LIMITS)
    with pytest.raises(FileNotFoundError, match=r"no image at 'b.png'"):
        open_isolated(tmp_path / "b.png", folder, LIMITS)


def test_a_decoder_that_hangs_is_killed_and_its_thread_is_free(png, folder, decoder):
    """Regression: such a decoder used to keep its thread for good; after eight of them the page refused everybody."""
    decoder("ctypes.PyDLL(None).sleep(600)")  # hold Python's global lock, as hanging C code may do
    work = TimedWork(4.0)
    for _ in range(2):
        with pytest.raises(TooLate, match="time limit"):
            work(open_isolated, png, folder, Limits(seconds=60))
        deadline = time.monotonic() + 30
        while work.late and time.monotonic() < deadline:
            time.sleep(0.05)
        assert work.late == 0
    with pytest.raises(TooLate, match=r"a.png could not be read within 0.5 s, the time limit"):
        open_isolated(png, folder, Limits(seconds=0.5))
    request = TimedRequest()
    request.stop.set_result(None)
    with pytest.raises(StoppedByUser):
        TimedWork(60)(open_isolated, png, folder, LIMITS, request=request)
    deadline = time.monotonic() + 30  # the thread ends the process after the request has its answer
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children(), "the process with the hanging decoder must have been killed"


def children() -> list[str]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "opening_process"], capture_output=True, text=True)
    return found.stdout.split()


def test_it_ends_by_itself_when_the_server_is_gone(png, folder, decoder):
    decoder("ctypes.PyDLL(None).sleep(600)")
    order = f'["{png}", "{folder}", 10000, 10000, 1]'
    command = [
        sys.executable,
        "-c",
        "from skysense_o.interactive.opening_process import open_and_answer; open_and_answer()",
        order,
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
    assert subprocess.run(command, env=environment, timeout=300).returncode == -signal.SIGALRM


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os.kill(os.getpid(), 11)", r"a.png makes its decoder fail \(SIGSEGV\): it is damaged, or too large"),
        ("bytearray(100 << 30)", r"a.png needs more memory than there is"),
        ("raise TypeError('odd')", r"a.png is cut short or damaged \(odd\)"),
    ],
)
def test_a_decoder_that_crashes_or_fills_the_memory_is_an_error_of_its_file(png, folder, decoder, code, says):
    decoder(code)
    with pytest.raises(ImageError, match=says):
        open_isolated(png, folder, LIMITS)


def test_it_imports_nothing_from_the_current_folder(png, folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/zipfile.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert open_isolated(png, folder, LIMITS).rgb.shape == (30, 40, 3)
