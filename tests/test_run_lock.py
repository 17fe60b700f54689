"""Tests that two runs never write into one folder.

The second run's error names the first run; the lock of a dead process is taken over.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from made_scenes import WORDS, colour_predictor, fields, write_scene

from skysense_o.data_engine.work_folder import WorkFolder
from skysense_o.run_lock import run_lock
from skysense_o.scenes.options import SceneOutputs
from skysense_o.scenes.run import run_scene

HOLDER = """
import sys, time
from pathlib import Path
from skysense_o.run_lock import run_lock
with run_lock(Path(sys.argv[1]), Path(sys.argv[1]).parent, "x"):
    if len(sys.argv) > 2:
        import os
        if os.fork() == 0:  # as a loader's worker, which lives a little longer
            time.sleep(float(sys.argv[2]))
            os._exit(0)
    print("held", flush=True)
    time.sleep(600)
"""

pytestmark = pytest.mark.faults


def hold(path: Path, *more: str) -> subprocess.Popen:
    """Start another process that holds the lock of a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(path), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "held\n"
    return process


def enter(path: Path) -> None:
    with run_lock(path, path.parent, "give another folder"):
        pass


def test_the_second_run_says_who_holds_the_folder(tmp_path):
    process = hold(tmp_path / ".lock")
    said = rf"'{tmp_path}' is in use by process {process.pid} on {socket.gethostname()} since 20.*give another folder"
    with pytest.raises(OSError, match=said):
        enter(tmp_path / ".lock")
    process.terminate()
    process.wait()
    enter(tmp_path / ".lock")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_run_is_taken_over_even_while_its_children_live(tmp_path):
    process = hold(tmp_path / ".lock", "2")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".lock").is_file()
    begun = time.monotonic()
    enter(tmp_path / ".lock")
    assert time.monotonic() - begun < 9
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_without_a_lock_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "since": "2020"}))
    enter(tmp_path / ".lock")
    assert list(tmp_path.iterdir()) == []


def test_steps_of_the_data_engine_exclude_each_other(tmp_path):
    work = WorkFolder(tmp_path / "work")
    with work.step("collect", {"tile": 64}):
        with pytest.raises(OSError, match="work' is in use by process .* give another --work"), work.step("name", {}):
            pass
        assert list(json.loads((work / "engine.json").read_text())) == ["collect"]
    with work.step("name", {}):
        pass
    assert not (work / ".lock").exists()


def test_a_scene_is_made_by_one_run_at_a_time(tmp_path):
    path = write_scene(tmp_path / "s.tif", fields(64, 96))
    predictor, out = colour_predictor(), tmp_path / "out"
    process = hold(out / ".s.lock")
    with pytest.raises(OSError, match="s.work' is in use by process .*give another --output"):
        run_scene(predictor, path, WORDS, SceneOutputs(out, ("json",)), progress=False)
    assert not (out / "s.json").exists()
    process.terminate()
    process.wait()
    run_scene(predictor, path, WORDS, SceneOutputs(out, ("json",)), progress=False)
    assert [p.name for p in out.iterdir()] == ["s.json"]


def test_a_failed_scene_leaves_no_open_files(tmp_path, monkeypatch):
    """Regression: each failed scene used to leave two file descriptors open."""
    path, fds = write_scene(tmp_path / "s.tif", fields(64, 96)), Path("/proc/self/fd")
    predictor, out = colour_predictor(), tmp_path / "out"

    def fail(*args, **kwargs):
        raise ValueError("a fault")

    for name in ("skysense_o.scenes.scene.run_windows", "skysense_o.scenes.run.save_scene"):
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            counts = []
            for _ in range(3):
                with pytest.raises(ValueError, match="a fault"):
                    run_scene(predictor, path, WORDS, SceneOutputs(out, ("json",)), progress=False)
                counts.append(len(list(fds.iterdir())))
        assert counts[0] == counts[-1]


def test_a_training_locks_its_folder(cfg, tmp_path):
    from skysense_o.training.run import train

    cfg.OUTPUT_DIR = str(tmp_path)
    process = hold(tmp_path / ".lock")
    with pytest.raises(OSError, match="is in use by process .*give another OUTPUT_DIR"):
        train(cfg, resume=False)
    process.kill()
    process.wait()
