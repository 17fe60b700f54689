"""Tests that kill the segmentation of a scene with SIGKILL at random moments.

The files of a resumed run must be identical to those of an uninterrupted run.

Training (20 kills) and the data engine (12 kills) are tested in tests/training/test_engine.py and
tests/data_engine/test_data_engine_kill.py. To run all three: python -m pytest -m faults -k kill
"""

from __future__ import annotations

import hashlib
import os

import pytest
from conftest import ROOT
from training.test_whole_path import command

pytestmark = pytest.mark.faults

pytest.importorskip("rasterio", reason='pip install -e ".[geo]"')

KILLS = 6
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
root, folder, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sys.path[:0] = [str(root), str(root / "tests"), str(root / "tests/helpers")]
from made_scenes import fields, write_scene
from scenes.test_scenes import make
import skysense_o.scenes.polygons, skysense_o.scenes.geojson, skysense_o.scenes.geotiff

path = write_scene(folder / "s.tif", fields(400, 500))
draw = random.Random(seed)

def start(target):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            make(path, target, ("geotiff", "confidence", "gpkg", "geojson", "areas"))
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(code)
    return pid

begun = time.time()
assert os.waitpid(start(folder / "whole"), 0)[1] == 0
alone, killed, finished = time.time() - begun, 0, 0
while killed < kills and finished < 3 * kills:
    pid = start(folder / "killed")
    time.sleep(draw.uniform(0.02, 0.9) * alone)
    if os.waitpid(pid, os.WNOHANG)[0] == 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
    else:
        finished += 1
print(killed, os.waitpid(start(folder / "killed"), 0)[1])
"""


def hashes(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


@pytest.mark.slow
def test_a_scene_killed_at_random_moments_has_the_same_bytes(tmp_path):
    seed = os.environ.get("SKYSENSE_O_SEED", "19")
    done = command("-c", KILLER, ROOT, tmp_path, KILLS, seed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(KILLS), "0"], done.stderr[-2000:]
    whole = hashes(tmp_path / "whole")
    assert len(whole) == 5
    assert hashes(tmp_path / "killed") == whole
    assert [p.name for p in (tmp_path / "killed").iterdir() if p.is_dir()] == []
