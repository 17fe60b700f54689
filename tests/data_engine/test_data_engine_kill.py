"""Tests that kill every step of the data engine with SIGKILL; a resumed run must write the same files as one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw_scene
from data_engine.test_data_engine import hashes
from PIL import Image
from training.test_whole_path import command

pytest.importorskip("faiss", reason='the data engine needs pip install -e ".[engine]"')

KILLER = """
import importlib.util, os, signal, sys, time
import torch
torch.set_num_threads(1)
root, work, whole, kills = sys.argv[1:5]
words = sys.argv[5:]
sys.path.insert(0, root)
spec = importlib.util.spec_from_file_location("engine", root + "/tools/data_engine.py")
engine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(engine)
import faiss, matplotlib.figure, pyarrow.parquet
from skysense_o.data_engine import vlm_namer, collect, deduplicate, build_graph, name, propose, publish, superpixels
from skysense_o.inference.predictor import Predictor
Predictor.from_pretrained("mini", "cpu")
ARGUMENTS = {
    "collect": ["--input", words[0], "--tile", "64"], "deduplicate": [], "propose": ["--least", "30"],
    "name": ["--classes", "water,land,road,building,vegetation"], "graph": ["--confidence", "0"],
    "publish": ["--confidence", "0", "--val", "0.3"],
}

def start(step, folder):
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(folder + ".log", "a")
        sys.argv = ["data_engine.py", step, "--work", folder, *ARGUMENTS[step]]
        try:
            code = engine.exit_code(engine.run)
        except BaseException as error:
            print(repr(error), flush=True)
            code = 99
        sys.stdout.flush()
        os._exit(code)
    return pid

def files(folder):
    return sum(len(names) for _, _, names in os.walk(folder))

killed = {}
for step in ARGUMENTS:
    assert os.waitpid(start(step, whole), 0)[1] == 0, step
    killed[step] = 0
    for extra in range(1, int(kills) + 1):
        before, pid = files(work), start(step, work)
        while files(work) < before + extra:  # until it has written `extra` more files
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
        else:
            os.kill(pid, signal.SIGKILL)
            killed[step] += os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert os.waitpid(start(step, work), 0)[1] == 0, step
import json
print(json.dumps(killed))
"""


@pytest.mark.slow
@pytest.mark.faults
def test_resuming_after_a_kill_gives_the_same_files(tmp_path):
    images, rng = tmp_path / "images", np.random.default_rng(0)
    images.mkdir()
    for i in range(2):
        image = draw_scene(rng, 128, 128)[0].astype(int) + rng.integers(-60, 60, (128, 128, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(images / f"{i}.png")
    done = command("-c", KILLER, ROOT, tmp_path / "killed", tmp_path / "whole", 2, images, cwd=tmp_path)
    log = Path(f"{tmp_path / 'killed'}.log")
    assert done.returncode == 0, done.stderr[-2000:] + (log.read_text()[-2000:] if log.exists() else "")
    killed = json.loads(done.stdout.splitlines()[-1])
    assert all(count >= 1 for count in killed.values()), killed
    whole, parts = hashes(tmp_path / "whole"), hashes(tmp_path / "killed")
    leftovers = {name for name in parts if name.endswith(".part")}
    same = {name for name in whole if whole[name] == parts.get(name)}
    assert set(whole) - same == set(), "files of the resumed run differ or are missing"
    assert set(parts) - set(whole) - leftovers == set()
