"""Tests on a full disk: the last line of output names the file, its size and the cure; no partial file remains.

The disk is a tmpfs, and only root can mount one.

tests/test_whole_files.py tests each writer without a real disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skysense_o.data_engine.review.log import Decision, DecisionLog
from skysense_o.data_engine.work_folder import WorkFolder
from skysense_o.errors import exit_code
from skysense_o.inference.export import save

pytestmark = pytest.mark.faults

CURE = r"could not be written: the disk is full\. It needs (more than )?[\d,.]+ MB and [\d,.]+ MB are free: make room"


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a file system of a given size, such as "1m"; all are unmounted at the end."""
    folders = []

    def make(size: str) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        if os.geteuid() != 0:
            pytest.skip("a file system of its own needs root; tests/test_whole_files.py tests the writers without one")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield make
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, left: int = 0) -> None:
    """Fill a disk until `left` bytes, a multiple of 4096, are free."""
    with open(folder / "filler", "wb", buffering=0) as file:
        free = os.statvfs(folder).f_bavail * 4096
        written = sum(file.write(bytes(4096)) for _ in range(max(0, free - left) // 4096))
    assert written >= free - left


def told(run) -> str:
    """Run a command that must fail; return the last line that it prints. Progress bars may precede this line."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert exit_code(run) == 2
    assert "Traceback" not in err.getvalue()
    return err.getvalue().splitlines()[-1]


@pytest.mark.parametrize("format", ["overlay", "labels", "probabilities"])
def test_results_of_an_image(disk, mini, format):
    rgb = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    found = mini(rgb, "road,tree", probabilities=True)
    folder = disk("64k")
    fill(folder, 0 if format == "labels" else 4096)
    line = told(lambda: save(found, rgb, folder, "a", [format], {}) and 0)
    assert re.search(rf"a_{format}.* {CURE}", line)
    assert files_in(folder) == {"filler"}


def test_a_scene_while_it_is_segmented_and_while_its_files_are_written(disk, tmp_path, monkeypatch):
    pytest.importorskip("rasterio", reason="needs the extra geo")
    from made_scenes import fields, write_scene
    from scenes.test_scenes import make

    path = write_scene(tmp_path / "s.tif", fields(200, 300))
    folder = disk("8m")
    fill(folder, 65536)
    formats = ("geotiff", "gpkg", "geojson", "confidence")
    assert re.search(r"has 0\.1 MB free and this scene needs 0\.4 MB: make room", told(lambda: make(path, folder)))
    assert files_in(folder) == {"filler"}
    monkeypatch.setattr("skysense_o.scenes.scene.check_free_space", lambda *_: None)
    line = told(lambda: make(path, folder, formats) and 0)
    assert re.search(rf"s\.work/(labels|score)\.raw {CURE}", line)
    assert {Path(name).parts[0] for name in files_in(folder)} == {"filler", "s.work"}
    for left in (200 * 1024, 1200 * 1024):
        (folder / "filler").unlink()
        fill(folder, left)
        line = told(lambda: make(path, folder, formats) and 0)
        assert re.search(CURE, line), line
        assert {Path(name).suffix for name in files_in(folder) if name.startswith("s_")} <= {".tif"}
    (folder / "filler").unlink()
    make(path, folder, formats)
    make(path, tmp_path / "alone", formats)
    assert files_in(folder) == files_in(tmp_path / "alone")
    for name in files_in(folder):
        assert name.endswith(".gpkg") or (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_decisions(disk, tmp_path):
    """When the disk fills up, no partial line remains in the log, every decision for which `append` returned can be
    read back, and writing works again once space is freed.
    """
    folder = disk("64k")
    log = DecisionLog(folder)
    fill(folder, 8192)
    count = 0

    def decide():
        nonlocal count
        while True:
            log.append(Decision("a", 1, "ann", "accept", "road" * 50))
            count += 1

    line = told(decide)
    assert re.search(rf"decisions\.jsonl {CURE}", line)
    assert count > 5
    again = DecisionLog(folder)
    assert len(again.history["ann"]) == count
    assert again.bad == []
    (folder / "filler").unlink()
    log.append(Decision("a", 2, "ann", "reject"))
    assert [d.region for d in DecisionLog(folder).history["ann"]] == [1] * count + [2]


def test_a_torn_last_line_is_read_on_a_full_disk(disk):
    folder = disk("64k")
    log = DecisionLog(folder)
    log.append(Decision("a", 1, "ann", "accept", "road"))
    with open(log.path, "ab") as file:
        file.write(b'{"tile": "a", "reg')
    size = log.path.stat().st_size
    with open(log.path, "ab") as file:  # fill the file's last block, so that not even one more byte fits
        file.write(b" " * (4096 - size))
    fill(folder)
    assert len(DecisionLog(folder).history["ann"]) == 1


def test_the_engine(disk, tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra engine")
    from skysense_o.data_engine.collect import collect

    rng, images = np.random.default_rng(0), []
    for i in range(6):
        images.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(images[-1])
    folder = disk("256k")
    fill(folder, 49152)
    line = told(lambda: collect(WorkFolder(folder / "work"), images, side=64) and 0)
    assert re.search(CURE, line)
    assert not [name for name in files_in(folder) if name.endswith(".part")]
    (folder / "filler").unlink()
    collect(WorkFolder(folder / "work"), images, side=64)
    collect(WorkFolder(tmp_path / "alone"), images, side=64)
    for name in files_in(tmp_path / "alone"):
        assert (folder / "work" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


@pytest.mark.slow
def test_training(dubai, disk, tmp_path):
    """Regression: when the disk became full, tracebacks of the logging module used to follow the error message."""
    from training.test_whole_path import train

    folder = disk("1m")
    done = train(folder / "run", "SOLVER.MAX_ITER", "6", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^error: .*/model_0000002\.pth {CURE}.*continue with --resume$", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr + done.stdout
    assert files_in(folder / "run") == {"log.txt", "metrics.json", "run.json", "config.yaml"}
