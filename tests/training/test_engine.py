"""Tests of training runs: signals, errors, checkpoints, and a short run of every shipped config."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, small_config
from training.test_whole_path import SMALL, SMALL_KEYS, command, train, weights

from skysense_o.checkpoint import WeightsError, load_state, load_weights, save_weights, state_to_save
from skysense_o.config import default_config, model_config
from skysense_o.meta_arch import SkySenseO
from skysense_o.modeling import build_tower
from skysense_o.training import stopping
from skysense_o.training.checkpointer import RunCheckpointer
from skysense_o.training.known import fill_answers
from skysense_o.training.optimizer import build_optimizer, learning_rate
from skysense_o.training.run import train as train_run
from skysense_o.training.stopping import LossError, check_losses
from skysense_o.vocabulary import Vocabulary

HUGE_AT_A_FRACTION = {
    "MODEL.TOWER.SWIN.DIM": 16,
    "MODEL.TOWER.SWIN.DEPTHS": [2, 2, 2, 2],
    "MODEL.TOWER.SWIN.HEADS": [2, 2, 4, 4],
    "MODEL.TOWER.SWIN.WINDOWS": [4, 4, 4, 4],
    "MODEL.TOWER.SWIN.PRETRAINED_WINDOWS": [0, 0, 0, 0],
    "MODEL.TOWER.CLIP_TEXT.WIDTH": 32,
    "MODEL.TOWER.CLIP_TEXT.HEADS": 2,
    "MODEL.TOWER.CLIP_TEXT.LAYERS": 1,
    "MODEL.TOWER.CLIP_TEXT.OUTPUT_DIM": 24,
    "MODEL.TOWER.INPUT_SIZE": 64,
    "MODEL.SEM_SEG_HEAD.HIDDEN": 64,
    "MODEL.SEM_SEG_HEAD.WINDOW": 4,
}
TRAINING = [
    p for p in sorted((ROOT / "configs").rglob("*.yaml")) if "MAX_ITER" in p.read_text() or "_BASE_" in p.read_text()
]
# The others change only data sets, their weights or the schedule, which makes no difference to two processes.
OF_THEIR_OWN = [p for p in TRAINING if re.search(r"^(MODEL|INPUT)", p.read_text(), re.MULTILINE)]


def tiny(path, **changes) -> list[str]:
    """Return the KEY VALUE overrides that make a shipped config small enough for a test."""
    cfg = default_config()
    cfg.merge_from_file(str(path))
    keys = {
        **SMALL_KEYS,
        "TEST.EVAL_PERIOD": 0,
        "SOLVER.MAX_ITER": 2,
        # Accelerate allows only one precision per process, so all tests use the same.
        "SOLVER.PRECISION": "no",
        "MODEL.WEIGHTS": "",
        "DATASETS.TEST": "()",
        **changes,
    }
    data = {
        "labels": "dubai_train",
        "captions": "pairs/captions.jsonl@train",
        "questions": "rsivqa_train",
        "mixed": "dubai_train",
    }
    keys["DATASETS.TRAIN"] = f"('{data[cfg.INPUT.MAPPER]}',)"
    if cfg.INPUT.POINTS:
        keys["INPUT.POINTS"] = os.path.join(os.environ["DETECTRON2_DATASETS"], "ucmerced", "points.jsonl")
    if cfg.DATASETS.WEIGHTS:
        keys["DATASETS.WEIGHTS"] = "(1,)"
    if cfg.INPUT.MAPPER == "captions":
        keys["SOLVER.IMS_PER_BATCH"] = 4
    if cfg.MODEL.TOWER.NAME == "SkySenseCLIP":
        keys.update(HUGE_AT_A_FRACTION)
    return [str(word) for pair in keys.items() for word in pair]


def tiny_config(path, folder, **changes):
    cfg = default_config()
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(tiny(path, **changes))
    cfg.OUTPUT_DIR = str(folder)
    folder.mkdir(exist_ok=True)
    fill_answers(cfg, eval_only=False)
    return cfg


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_training_config_takes_two_steps(dubai, pairs, questions, llama, tmp_path, path):
    train_run(tiny_config(path, tmp_path / "run", **{"MODEL.VQA.LANGUAGE_MODEL": llama}), resume=False)
    last = json.loads((tmp_path / "run/metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 1
    assert last["total_loss"] > 0
    assert (tmp_path / "run/model_final.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", OF_THEIR_OWN, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_training_configs_take_two_steps_in_two_processes(dubai, pairs, questions, llama, tmp_path, path):
    """These configs take two steps in two processes; a parameter without a gradient would raise an error."""
    words = ["--config-file", path, "--num-gpus", 2, "OUTPUT_DIR", tmp_path / "run"]
    words += tiny(path, **{"MODEL.VQA.LANGUAGE_MODEL": llama})
    done = command(ROOT / "tools/train_net.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/model_final.pth").is_file()


def small_model() -> SkySenseO:
    torch.manual_seed(0)
    return SkySenseO(small_config())


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    model = small_model()
    checkpointer = RunCheckpointer(model, str(tmp_path), "", None)
    for step in (2, 5):
        model.tower.project.bias.data.fill_(float(step))
        checkpointer.save(f"model_{step:07d}", iteration=step)
    last = tmp_path / "model_0000005.pth"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with caplog.at_level("WARNING"):
        assert RunCheckpointer(model, str(tmp_path), "", None).resume() == 3
    assert "model_0000005.pth cannot be read" in caplog.text
    assert model.tower.project.bias[0] == 2.0
    (tmp_path / "model_0000002.pth").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* can be read"):
        RunCheckpointer(model, str(tmp_path), "", None).resume()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    checkpointer = RunCheckpointer(small_model(), str(tmp_path), "", None)
    checkpointer.save("model_0000002", iteration=2)
    good = (tmp_path / "model_0000002.pth").read_bytes()

    def full(data, path):
        path.write_bytes(b"a part of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OSError, match="model_0000005.pth could not be written: the disk is full.*continue with --resume"
    ):
        checkpointer.save("model_0000005", iteration=5)
    assert {p.name for p in tmp_path.iterdir()} == {"model_0000002.pth", "last_checkpoint"}
    assert (tmp_path / "model_0000002.pth").read_bytes() == good
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


def test_old_checkpoints_are_pruned(tmp_path):
    checkpointer = RunCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), "", None, kept=2)
    checkpointer.model.tower = small_model().tower
    checkpointer.save("model_best", tag=False, iteration=1)
    for step in range(5):
        checkpointer.save(f"model_{step:07d}", iteration=step)
    names = {p.name for p in tmp_path.glob("*.pth")}
    assert names == {"model_0000003.pth", "model_0000004.pth", "model_best.pth"}


def test_a_nan_loss_names_itself_and_the_images(tmp_path):
    sample = {
        "image": torch.zeros(3, 4, 4, dtype=torch.uint8),
        "vocabulary": Vocabulary.parse("road"),
        "file_name": "a.jpg",
    }
    losses = {"loss_bce": torch.tensor(1.0), "loss_region": torch.tensor(float("nan"))}
    with pytest.raises(LossError, match=r"loss_region.*nan.*step 8, for the images a.jpg; the batch is in") as error:
        check_losses(losses, [sample], 7, tmp_path)
    assert "loss_bce" not in str(error.value)
    dump = torch.load(tmp_path / "nan_0000007_0.pth", weights_only=True)
    assert dump["samples"][0]["vocabulary"] == [["road"]]
    assert torch.equal(dump["samples"][0]["image"], sample["image"])
    check_losses({"loss_bce": torch.tensor(1.0)}, [sample], 7, tmp_path)


def test_a_run_ends_with_nan_in_one_line(call, dubai, tmp_path):
    config = ROOT / "configs/mini/finetune.yaml"
    words = tiny(config, **{"SOLVER.BASE_LR": 1e30, "SOLVER.MAX_ITER": 4, "SOLVER.WARMUP_ITERS": 0})
    code, _, err = call("tools/train_net.py", "--config-file", config, "OUTPUT_DIR", tmp_path / "run", *words)
    assert code == 2
    assert re.search(r"error: .*nan.* in step \d, for the images .*tile\d_00\d.jpg", err)
    assert list((tmp_path / "run").glob("nan_*.pth"))


@pytest.mark.parametrize(
    ("gpus", "number", "send", "workers"),
    [
        (1, signal.SIGTERM, os.kill, 0),
        (1, signal.SIGINT, os.kill, 0),
        # Regression: the loader processes used to end first, and the run then ended with a traceback.
        (1, signal.SIGTERM, os.killpg, 2),
        (2, signal.SIGTERM, os.kill, 0),
        # A terminal's Ctrl-C reaches each training process twice: directly, and through the launcher.
        (2, signal.SIGINT, os.killpg, 1),
    ],
)
@pytest.mark.slow
def test_a_signal_saves_and_says_how_to_resume(dubai, tmp_path, gpus, number, send, workers):
    out = tmp_path / "run"
    words = ["--config-file", ROOT / "configs/mini/finetune.yaml", "--num-gpus", gpus, "OUTPUT_DIR", out, *SMALL]
    words += ["SOLVER.MAX_ITER", "5000", "SOLVER.CHECKPOINT_PERIOD", "0", "TEST.EVAL_PERIOD", "0"]
    words += ["DATALOADER.NUM_WORKERS", workers]
    line = [sys.executable, ROOT / "tools/train_net.py", *words]
    run = subprocess.Popen(
        list(map(str, line)),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until = time.time() + 120
    metrics = out / "metrics.json"
    while time.time() < until and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.2)  # the first metrics are written after 20 steps, when all processes have started
    send(run.pid, number)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 128 + number, said[-2000:]
    assert "Resume with:" in said
    assert re.search(r"train_net.py --resume --config-file", said)
    (saved,) = out.glob("model_0*.pth")
    assert (out / "last_checkpoint").read_text() == saved.name
    assert (out / "metrics.png").is_file()


def test_a_second_signal_kills_at_once_but_a_repeat_of_the_first_does_not(monkeypatch):
    now, killed = [100.0], []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stopping.os, "kill", lambda pid, number: killed.append((pid, number)))
    before = signal.getsignal(signal.SIGTERM)
    hook = stopping.StopOnSignal(checkpointer=None, device=torch.device("cpu"))
    try:
        hook._receive(signal.SIGTERM, None)
        now[0] += 0.1
        hook._receive(signal.SIGTERM, None)
        assert (hook.received, killed) == (signal.SIGTERM, [])
        now[0] += 5
        hook._receive(signal.SIGTERM, None)
        assert killed == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_torchrun_and_accelerate_launch_give_the_same(dubai, tmp_path):
    plain = ["SOLVER.MAX_ITER", "2", "SOLVER.PRECISION", "no", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]
    script = [ROOT / "tools/train_net.py", "--config-file", ROOT / "configs/mini/finetune.yaml", "OUTPUT_DIR"]
    starts = {
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29611],
        "accelerate": [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            2,
            "--main_process_port",
            29612,
        ],
    }
    done = train(tmp_path / "own", *plain, cwd=tmp_path, gpus=2)
    assert done.returncode == 0, done.stderr[-2000:]
    own = weights(tmp_path / "own")
    for name, start in starts.items():
        done = command(*start, *script, tmp_path / name, *SMALL, *plain, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads((tmp_path / name / "run.json").read_text())["starts"][0]["processes"] == 2
        assert all(torch.equal(own[key], value) for key, value in weights(tmp_path / name).items()), name


def test_accelerate_launch_on_cpu_is_refused(call, monkeypatch, tmp_path, dubai):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = ROOT / "configs/mini/finetune.yaml"
    code, _, err = call("tools/train_net.py", "--config-file", config, "OUTPUT_DIR", tmp_path / "run")
    assert code == 2
    assert "'accelerate launch --cpu' starts only one process" in err


def test_run_json_and_plot(dubai, tmp_path):
    config = ROOT / "configs/mini/finetune.yaml"
    for resume in (False, True):
        cfg = tiny_config(config, tmp_path / "run", **{"SOLVER.MAX_ITER": 3 if resume else 2})
        train_run(cfg, resume=resume)
    first, second = json.loads((tmp_path / "run/run.json").read_text())["starts"]
    assert (first["from_step"], second["from_step"]) == (0, 2)
    assert first["data"]["dubai_train"]["records"] == 4
    assert first["data"] == second["data"]
    assert first["versions"]["torch"]
    assert "MAX_ITER: 2" in first["config"]
    last = json.loads((tmp_path / "run/metrics.json").read_text().splitlines()[-1])
    assert {"gradient_norm", "images_per_second", "peak_memory_gib", "data_time", "lr"} <= set(last)
    assert (tmp_path / "run/metrics.png").stat().st_size > 5000


def test_twenty_steps_print_five_lines_and_every_point_is_in_the_plot(dubai, tmp_path, caplog, monkeypatch):
    """Regression: twenty steps used to print only one line, and a curve of one point is invisible in metrics.png."""
    from matplotlib.axes import Axes

    drawn, plot = {}, Axes.plot

    def spy(axes, x, y, *args, label, **kwargs):
        drawn[label] = (x, kwargs["marker"])
        return plot(axes, x, y, *args, label=label, **kwargs)

    monkeypatch.setattr(Axes, "plot", spy)
    printed = logging.getLogger("detectron2.utils.events")
    monkeypatch.setattr(printed, "level", logging.INFO)
    printed.addHandler(caplog.handler)
    try:
        changes = {"SOLVER.MAX_ITER": 20, "SOLVER.CHECKPOINT_PERIOD": 0}
        train_run(tiny_config(ROOT / "configs/mini/finetune.yaml", tmp_path / "run", **changes), resume=False)
    finally:
        printed.removeHandler(caplog.handler)
    assert sum("total_loss" in record.getMessage() for record in caplog.records) >= 5
    steps, marker = drawn["total_loss"]
    assert list(steps) == [4, 8, 12, 16, 20]
    assert marker == "."
    assert drawn["lr"] == (steps, marker)


def test_a_missing_label_is_skipped_in_training_and_evaluation(dubai, tmp_path):
    """Regression: collecting the data for run.json used to ignore DATALOADER.SKIP_BAD and fail on a missing label."""
    for stem in ("tile1_001", "tile5_001"):
        (dubai / "labels" / f"{stem}.png").unlink()
    changes = {"DATALOADER.SKIP_BAD": True, "DATASETS.TEST": "('dubai_val',)"}
    train_run(tiny_config(ROOT / "configs/mini/finetune.yaml", tmp_path / "run", **changes), resume=False)
    data = json.loads((tmp_path / "run/run.json").read_text())["starts"][0]["data"]
    assert {name: part["records"] for name, part in data.items()} == {"dubai_train": 3, "dubai_val": 1}


def test_weights_and_biases_offline(dubai, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install 'wandb>=0.19,<1'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train_run(tiny_config(ROOT / "configs/mini/finetune.yaml", tmp_path / "run", **{"SOLVER.WANDB": "test"}), False)
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))


def test_the_learning_rate_follows_the_batch(cfg):
    cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH = 1e-3, 64
    assert learning_rate(cfg) == 1e-3
    cfg.SOLVER.LR_BATCH = 16
    assert learning_rate(cfg) == pytest.approx(2e-3)
    cfg.SOLVER.LR_RULE = "linear"
    assert learning_rate(cfg) == pytest.approx(4e-3)
    cfg.SOLVER.LR_RULE = "cubic"
    with pytest.raises(ValueError, match="unknown SOLVER.LR_RULE 'cubic': choose one of linear, sqrt"):
        learning_rate(cfg)


def test_lower_layers_learn_slower():
    model = small_model()
    optimizer = build_optimizer(model, [[".", 1.0, 0.0]], 1e-2, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layers = model.tower.layers()
    for depth, modules in enumerate(layers):
        for parameter in modules[0].parameters():
            assert rates[id(parameter)] == pytest.approx(1e-2 * 0.5 ** (len(layers) - depth))
    assert rates[id(model.tower.project.weight)] == 1e-2


def swin_config(**tower):
    cfg = small_config()
    cfg.MODEL.TOWER.NAME = "SkySenseCLIP"
    cfg.merge_from_list([word for pair in HUGE_AT_A_FRACTION.items() for word in pair])
    cfg.MODEL.TOWER.SWIN.DROP_PATH = 0.0
    for key, value in tower.items():
        cfg.MODEL.TOWER[key] = value
    return cfg


@pytest.mark.parametrize("name", ["MiniTower", "SkySenseCLIP"])
def test_recomputed_layers_give_the_same_gradients(name):
    x, results = torch.randn(1, 3, 64, 64), []
    for recompute in (False, True):
        torch.manual_seed(0)
        tower = build_tower(swin_config(NAME=name, RECOMPUTE=recompute)).train()
        out = tower.encode_image(x).dense.square().mean() + tower.encode_text(["a road"]).sum()
        out.backward()
        results.append((out, {n: p.grad for n, p in tower.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    for key, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], gradient, atol=1e-6, rtol=1e-4, msg=key)


def test_low_rank_updates(tmp_path):
    """With LoRA, a model starts from plain weights, trains only the updates, and merges them when it is saved."""
    plain = SkySenseO(swin_config())
    cfg = swin_config(LORA_RANK=2)
    model = SkySenseO(cfg)
    load_state(model, state_to_save(plain), "plain weights", allow_missing=[r"\.parametrizations\.\w+\.0\."])
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.tower.encode_image(x).dense, plain.tower.encode_image(x).dense)
    attention = model.tower.visual.stages[0].blocks[0].attn.qkv
    frozen = attention.parametrizations.weight.original
    before = frozen.clone()
    optimizer = build_optimizer(model, [[".", 1.0, 0.1]], 1e-2)
    for _ in range(2):
        loss = model.tower.encode_image(x).dense.square().mean() + model.tower.encode_text(["a road"])[0, 0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(frozen, before)
    assert attention.parametrizations.weight[0].b.abs().max() > 0
    save_weights(model, tmp_path / "a.safetensors", model_config(cfg).dump())
    merged = SkySenseO(swin_config())
    load_weights(merged, tmp_path / "a.safetensors")
    torch.testing.assert_close(
        merged.tower.encode_image(x).dense, model.tower.encode_image(x).dense, atol=1e-5, rtol=1e-4
    )
    with pytest.raises(WeightsError, match="missing"):
        load_state(model, state_to_save(plain), "plain weights")


def test_no_attention_no_low_rank_updates(cfg):
    cfg.MODEL.TOWER.LORA_RANK = 2
    with pytest.raises(ValueError, match="MODEL.TOWER.LORA_RANK: MiniTower has no attention to adapt"):
        SkySenseO(cfg)


FORKED = """
import os, random, signal, sys, time
import torch
from skysense_o.config import default_config
from skysense_o.training.run import train
import skysense_o.data, transformers, timm, open_clip
torch.set_num_threads(1)
config, folder, kills, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
words = sys.argv[5:]
draw = random.Random(0)

def start(folder):
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(folder + "/log", "a")
        cfg = default_config()
        cfg.merge_from_file(config)
        cfg.merge_from_list(words)
        cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = folder, int(steps)
        resume = os.path.exists(folder + "/last_checkpoint")
        try:
            train(cfg, resume)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return pid

for name in ("whole", "killed"):
    os.makedirs(folder + "/" + name, exist_ok=True)
begun = time.time()
assert os.waitpid(start(folder + "/whole"), 0)[1] == 0
alone = time.time() - begun
killed = 0
while killed < kills:
    pid = start(folder + "/killed")
    time.sleep(draw.uniform(0.3, 1.0) * min(alone, 4.0))
    if os.waitpid(pid, os.WNOHANG)[0] == 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
    else:
        break
status = os.waitpid(start(folder + "/killed"), 0)[1]
print(killed, status)
"""


@pytest.mark.slow
@pytest.mark.faults
def test_killed_twenty_times_it_ends_with_the_same_weights(dubai, tmp_path):
    """A training with a loader process, killed 20 times at random by SIGKILL, gives the weights of an unkilled run."""
    config = ROOT / "configs/mini/finetune.yaml"
    words = tiny(config, **{"SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.EMA_DECAY": 0.9, "DATALOADER.NUM_WORKERS": 1})
    done = command("-c", FORKED, config, tmp_path, 20, 60, *words, cwd=ROOT)
    log = (tmp_path / "killed/log").read_text()
    assert done.returncode == 0, done.stderr[-2000:]
    killed, status = map(int, done.stdout.split())
    assert (killed, status) == (20, 0), (done.stdout, log[-2000:])
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
