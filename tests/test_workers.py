"""Tests that loops give the same results in this process and on a Ray cluster, even if a worker is killed.

The cluster has a head and a second node, each with one CPU; both run on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_scene, small_config
from data_engine.test_data_engine import WORDS, hashes
from made_scenes import fields, write_scene
from PIL import Image
from training.test_whole_path import SMALL
from vqa.test_questions import vqa_config
from worker_functions import missing, ten, times

from skysense_o.checkpoint import save_weights
from skysense_o.config import model_config
from skysense_o.data.catalog import records_of
from skysense_o.data_engine.collect import collect
from skysense_o.data_engine.work_folder import WorkFolder
from skysense_o.meta_arch import SkySenseO
from skysense_o.vqa import EmbeddedVQA
from skysense_o.workers import ATTEMPTS, Cluster, here

OBJECT_STORE = 100 * 2**20  # object store size per node, in bytes


@pytest.fixture(scope="module")
def cluster():
    """Start a Ray cluster of two nodes, whose workers can import the tests; return it."""
    pytest.importorskip("ray", reason='pip install -e ".[archive]"')
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/helpers"))))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default, workers have a lower priority than all other processes
        patch.setenv("RAY_raylet_start_wait_time_s", "180")  # timeout for a busy machine; the default is 30 seconds
        head = {"num_cpus": 1, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        nodes = Nodes(initialize_head=True, head_node_args=head)
        nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
        yield nodes
        nodes.shutdown()


def worker_processes(cluster) -> list[int]:
    """Return the process ids of the workers that are busy with an item, on all nodes of the cluster."""
    raylets = {str(infos[0].process.pid) for node in cluster.list_all_nodes() for name, infos in
               node.all_processes.items() if name == "raylet"}  # fmt: skip
    found = []
    for folder in Path("/proc").iterdir():
        try:
            title, stat = (folder / "cmdline").read_text(), (folder / "stat").read_text()
        except OSError:
            continue
        if title.startswith("ray::_Worker.call") and stat.rpartition(")")[2].split()[1] in raylets:
            found.append(int(folder.name))
    return found


@pytest.fixture
def killer(cluster):
    """Return a function that kills one busy worker as soon as `when()` is true; it returns the list of killed ids."""
    stop, threads = threading.Event(), []

    def start(when):
        dead = []

        def watch():
            while not stop.wait(0.01):
                if when():
                    for pid in worker_processes(cluster)[:1]:
                        os.kill(pid, signal.SIGKILL)
                        dead.append(pid)
                        return

        threads.append(threading.Thread(target=watch))
        threads[-1].start()
        return dead

    yield start
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_an_item_whose_worker_is_killed_is_tried_again(cluster, tmp_path):
    function = partial(times, tmp_path)
    with Cluster(cluster.address).each(ten) as each:
        assert dict(each(function, [1, 2, 3, 4], desc="a")) == {1: 10, 2: 20, 3: 30, 4: 40}
        assert (tmp_path / "killed").exists()
        assert list(each(function, [], desc="b")) == []
        results = dict(each(function, [5, 6], desc="c", lost=lambda item, reason: reason))
        assert results[6] == 60
        assert f"lost {ATTEMPTS} times" in results[5]
        with pytest.raises(OSError, match=f"d: 5: its worker was lost {ATTEMPTS} times"):
            list(each(function, [5], desc="d"))
    with Cluster(cluster.address).each(ten) as each, pytest.raises(ValueError, match=r"^7 is wrong$"):
        list(each(function, [7], desc="e"))
    with Cluster(cluster.address).each(missing) as each, pytest.raises(FileNotFoundError, match="no weights at 'a'"):
        list(each(function, [1], desc="f"))
    with (
        pytest.raises(ValueError, match="--cpus 3 --gpus 0: no machine of the cluster has them for one worker"),
        Cluster(cluster.address, cpus=3).each(ten),
    ):
        pass


def test_items_are_done_here_in_their_order(tmp_path):
    assert list(here(10)(partial(times, tmp_path), [2, 1], desc="a")) == [(2, 20), (1, 10)]
    with pytest.raises(ValueError, match="7 is wrong"):
        list(here(10)(partial(times, tmp_path), [7], desc="a"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"address": "head"}, r"--address 'head': give HOST:PORT, ray://HOST:PORT, auto or local"),
        ({"workers": 0}, "--workers 0 is out of range: 1 or more"),
        ({"cpus": 0.0}, "--cpus 0.0 --gpus 0.0 is out of range: --cpus above 0, --gpus 0 or more"),
        ({"gpus": -1.0}, "--gpus -1.0 is out of range"),
    ],
)
def test_a_wrong_option_is_an_error(options, says):
    with pytest.raises(ValueError, match=says):
        Cluster(**options)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_an_address_that_does_not_answer_is_an_error(address):
    pytest.importorskip("ray", reason='pip install -e ".[archive]"')
    begun = time.monotonic()
    with (
        pytest.raises(OSError, match=f"--address '{address}' does not answer as a Ray cluster"),
        Cluster(address).each(ten),
    ):
        pass
    assert time.monotonic() - begun < 15


def test_ray_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(
            ModuleNotFoundError, match=r'need ray, which is not installed: pip install "skysense_o\[archive\]"'
        ),
        Cluster().each(ten),
    ):
        pass


@pytest.fixture
def one_thread():
    """Use one thread, like the workers, because the last digits of scores depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_scenes_on_a_cluster_equal_those_of_one_process(cluster, killer, call, tmp_path, one_thread):
    for number in range(5):
        write_scene(tmp_path / f"{number}.tif", fields(200, 260, number))
    words = ("--input", tmp_path / "*.tif", "--classes", "water,land", "--save", "geotiff,areas")
    out = tmp_path / "out"
    dead = killer(lambda: 0 < len(list(out.glob("*_areas.csv"))) < 4)
    code, _, err = call("tools/segment_archive.py", *words, "--output", out, "--address", cluster.address)
    assert (code, len(dead)) == (0, 1), err
    assert call("demo/demo.py", *words, "--output", tmp_path / "one")[0] == 0
    assert hashes(out) == hashes(tmp_path / "one")
    assert len(hashes(out)) == 10


@pytest.mark.slow
def test_regions_and_names_on_a_cluster_equal_those_of_one_process(cluster, killer, call, tmp_path, one_thread):
    images, rng = tmp_path / "images", np.random.default_rng(3)
    images.mkdir()
    for number in range(6):
        Image.fromarray(draw_scene(rng, 96 + 8 * number, 120)[0]).save(images / f"{number}.png")
    one, two = tmp_path / "one", tmp_path / "two"
    collect(WorkFolder(one), sorted(images.iterdir()), side=128)
    damaged = sorted((one / "tiles").iterdir())[2]
    damaged.write_bytes(b"\x89PNG no more")
    shutil.copytree(one, two)
    for step, folder in (("propose", "regions"), ("name", "names")):
        code, printed, err = call("tools/data_engine.py", step, "--classes", WORDS, "--work", one)
        dead = killer(lambda folder=folder: 0 < len(list((two / folder).glob("*.json"))) < 4)
        words = ("--classes", WORDS, "--work", two, "--address", cluster.address)
        again = call("tools/data_engine.py", step, *words)
        assert len(dead) == 1, again
        assert again[:2] == (code, printed)
        assert last_line(err) == last_line(again[2]).replace(str(two), str(one))
        assert last_line(err).startswith(f"error: {damaged.stem}: ")
    assert hashes(one) == hashes(two)
    assert len(list((two / "names").iterdir())) == 6


@pytest.mark.slow
def test_an_evaluation_on_a_cluster_equals_that_of_one_process(cluster, killer, call, dubai, questions, tmp_path):
    for number in range(2, 8):
        for kind, end in (("images", "jpg"), ("labels", "png")):
            source = dubai / kind / f"tile{1 + number % 2}_001.{end}"
            (dubai / kind / f"tile6_00{number}.{end}").write_bytes(source.read_bytes())
    cfg, asked = small_config(), vqa_config(records_of("rsivqa_train"))
    cfg.MODEL.SEM_SEG_HEAD.SHARED_TOKENS = 5  # the overrides in SMALL do not change this key
    for name, model, its in (("small", SkySenseO(cfg), cfg), ("vqa", EmbeddedVQA(asked), asked)):
        save_weights(model, tmp_path / f"{name}.safetensors", model_config(its).dump())
    keys = [*SMALL, "MODEL.WEIGHTS", tmp_path / "small.safetensors", "MODEL.VQA.WEIGHTS", tmp_path / "vqa.safetensors"]
    keys += ["DATASETS.TEST", "('dubai_val','rsivqa_test')", "TEST.PREDICTIONS", "('coco','png')", "TEST.IMAGES", 1]
    results, predicted = [], tmp_path / "two/inference/dubai_val_predictions"
    dead = killer(lambda: 0 < len(list(predicted.glob("*.png"))) < 7)
    for folder, address in (("two", ("--address", cluster.address)), ("one", ())):
        words = ("--config-file", ROOT / "configs/mini/finetune.yaml", "--eval-only", *address, *keys)
        code, out, err = call("tools/train_net.py", *words, "OUTPUT_DIR", tmp_path / folder)
        assert (code, len(dead)) == (0, 1), out + err
        results.append(json.loads((tmp_path / folder / "results.json").read_text())["results"])
    assert [body.pop("record")["machine"]["processes"] for body in results[0] + results[1]] == [2, 2, 1, 1]
    assert results[0] == results[1]
    for folder in ("one", "two"):
        # These files contain run times, which differ; their metrics are also in results.json.
        for name in ("dubai_val", "rsivqa_test"):
            (tmp_path / folder / f"inference/{name}.json").unlink()
    files = hashes(tmp_path / "one/inference")
    assert files == hashes(tmp_path / "two/inference")
    assert len(files) > 12


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_a_training_does_not_run_on_a_cluster(call):
    for words in ((), ("--eval-only", "--num-gpus", "2")):
        code, _, err = call("tools/train_net.py", "--config-file", "c.yaml", *words, "--address", "auto")
        assert code == 2
        assert "--address and --workers are for --eval-only with --num-gpus 1 and --num-machines 1" in err
