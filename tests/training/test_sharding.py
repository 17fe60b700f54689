"""Tests of trainings that are sharded over their processes (SOLVER.SHARD, FSDP2)."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import ROOT, small_config
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from training.test_engine import tiny, tiny_config
from training.test_whole_path import command

from skysense_o.checkpoint import WeightsError, build_with_weights, config_of, find_weights, read_weights
from skysense_o.meta_arch import SkySenseO
from skysense_o.sharded_files import write_sharded
from skysense_o.training.checkpointer import ShardedCheckpointer
from skysense_o.training.ema import MovingAverage
from skysense_o.training.optimizer import build_optimizer
from skysense_o.training.run import train as train_run
from skysense_o.training.sharding import check_sharding, clip_gradients, shard, whole_state, whole_weights
from skysense_o.vocabulary import Vocabulary
from skysense_o.weight_files import load_plain

CONFIG = ROOT / "configs/mini/finetune.yaml"
CHANGES = {
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.ACCUMULATION": 2,
    "SOLVER.EMA_DECAY": 0.9,
    "MODEL.TEXT_NOISE": 0.0,  # the noise would differ between processes
    "DATASETS.TEST": "('dubai_val',)",
}


@pytest.mark.slow
def test_two_sharded_processes_train_like_ddp(dubai, tmp_path):
    """Two processes train with DDP, sharded, and sharded but resumed after 2 of 4 steps; all end alike.

    One process alone can also resume the sharded run.
    """
    start = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29613]
    done = command(*start, ROOT / "tests/helpers/sharded_run.py", CONFIG, tmp_path, *tiny(CONFIG, **CHANGES), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]

    losses = json.loads((tmp_path / "losses.json").read_text())
    assert losses["whole"] == pytest.approx(losses["ddp"], abs=1e-5)
    assert losses["parts"] == losses["whole"][2:]
    results = [json.loads((tmp_path / run / "inference/dubai_val.json").read_text()) for run in ("ddp", "whole")]
    assert results[1]["numbers"] == pytest.approx(results[0]["numbers"], abs=1e-3)

    held = [json.loads((tmp_path / f"held_{rank}.json").read_text()) for rank in range(2)]
    assert held[0]["ddp"] == held[1]["ddp"]
    assert all(h["whole"] < 0.6 * h["ddp"] for h in held), (
        "each of two processes must hold about half of the parameters and AdamW's moments"
    )

    # A single process without a process group can read the sharded folder.
    path = find_weights(tmp_path / "whole/model_final.sharded")
    ddp, whole = read_weights(tmp_path / "ddp/model_final.pth"), read_weights(path)
    assert whole.keys() == ddp.keys()
    for name, tensor in ddp.items():
        torch.testing.assert_close(whole[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    parts = read_weights(tmp_path / "parts/model_final.sharded")
    assert all(torch.equal(whole[name], tensor) for name, tensor in parts.items())
    cfg = config_of(tmp_path / "whole/model_final.safetensors")
    cfg.MODEL.DEVICE = "cpu"
    image = {
        "image": torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8),
        "vocabulary": Vocabulary.parse("road,tree"),
    }
    files = (tmp_path / "ddp/model_final.pth", path, tmp_path / "whole/model_final.safetensors")
    maps = [build_with_weights(cfg, file)[0].predict([image], "probabilities")[0]["sem_seg"] for file in files]
    torch.testing.assert_close(maps[1], maps[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(maps[2], maps[1], atol=1e-2, rtol=0)  # these weights were stored in half precision

    # A single process resumes from the checkpoint of two, and ends with the same weights up to rounding.
    shutil.copytree(tmp_path / "whole/model_0000001.sharded", tmp_path / "alone/model_0000001.sharded")
    (tmp_path / "alone/last_checkpoint").write_text("model_0000001.sharded")
    alone = tiny_config(CONFIG, tmp_path / "alone", **{**CHANGES, "SOLVER.ACCUMULATION": 4, "DATASETS.TEST": "()"})
    train_run(alone, resume=True)
    for name, tensor in read_weights(tmp_path / "alone/model_final.pth").items():
        torch.testing.assert_close(tensor, whole[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skysense_o/finetune", "pretrain/skysense_clip", "mini/vqa", "llava/instruct"])
def test_every_kind_of_model_is_sharded_by_the_command_line(dubai, pairs, questions, llama, tmp_path, name):
    path = ROOT / f"configs/{name}.yaml"
    words = ["--config-file", path, "--num-gpus", 2, "OUTPUT_DIR", tmp_path / "run"]
    words += tiny(path, **{"MODEL.VQA.LANGUAGE_MODEL": llama, "SOLVER.SHARD": True})
    done = command(ROOT / "tools/train_net.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "run/model_final.sharded").glob("*.safetensors"))) == 2
    assert (tmp_path / "run/model_final.safetensors").is_file()


@pytest.fixture
def one_process(tmp_path):
    """Make a process group that contains only this process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Layers(nn.Module):
    """A model whose layers are sharded one by one; it has a scalar, channels-last kernels and frozen weights."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Module()
        self.tower.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.tower.layers = lambda: [[block] for block in self.tower.blocks]
        self.scale, self.head = nn.Parameter(torch.tensor(0.5)), nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        for block in self.tower.blocks:
            x = block(x).relu()
        return {"loss": (self.head(self.frozen(x.mean((2, 3)))) * self.scale - 1).square().mean()}


def test_scalars_and_frozen_weights(one_process):
    results = []
    for sharded in (False, True):
        torch.manual_seed(0)
        model = Layers()
        if sharded:
            shard(model, torch.device("cpu"))
            assert isinstance(model.tower.blocks[1], FSDPModule)
        optimizer = build_optimizer(model, [[".", 1.0, 0.1]], 1e-2)
        average, numbers = MovingAverage(model, 0.9), []
        for _ in range(3):
            loss = model(torch.ones(2, 4, 8, 8))["loss"]
            loss.backward()
            numbers += [float(loss.detach()), float(clip_gradients(model.parameters(), 0.1))]
            optimizer.step()
            optimizer.zero_grad()
            average.update()
        with average.applied():
            with whole_weights(model):  # call a block directly, as evaluation does; no weights may be gathered inside
                model.tower.blocks[0](torch.ones(1, 4, 8, 8))
                assert not isinstance(model.head.weight, DTensor)
            results.append((numbers, whole_state(model.state_dict())))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    for name, tensor in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], tensor, msg=name)


def test_clipping_is_that_of_torch():
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    for layer in (ours, theirs):
        layer.weight.grad, layer.bias.grad = torch.full((2, 3), 2.0), torch.full((2,), 1.0)
    assert torch.equal(clip_gradients(ours.parameters(), 1.0), nn.utils.clip_grad_norm_(theirs.parameters(), 1.0))
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


STATE = {
    "model": {"a.weight": torch.arange(6.0).view(2, 3), "scale": torch.tensor(0.5)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "iteration": 7,
}


def test_a_sharded_folder_is_read_whole_without_running_code(one_process, tmp_path):
    path = tmp_path / "a.sharded"
    for _ in range(2):  # the second folder replaces the first
        write_sharded(path, STATE)
    assert sorted(p.name for p in tmp_path.glob(".a*")) == []
    state = load_plain(path)
    assert (state["iteration"], state["optimizer"]["param_groups"]) == (7, STATE["optimizer"]["param_groups"])
    assert torch.equal(state["optimizer"]["state"][0]["step"], torch.tensor(3.0))
    assert list(read_weights(find_weights(path))) == ["a.weight", "scale"]
    assert torch.equal(read_weights(path)["a.weight"], STATE["model"]["a.weight"])

    with pytest.raises(WeightsError, match="does not hold its config: give a YAML"):
        config_of(path)
    torch.save({"processes": 1, "values": Vocabulary.parse("road")}, path / "values.pth")
    with pytest.raises(WeightsError, match="a.sharded is not a readable checkpoint"):
        load_plain(path)


def test_a_sharded_folder_with_a_lost_file_falls_back_to_the_one_before(one_process, tmp_path, caplog):
    torch.manual_seed(0)
    model = SkySenseO(small_config())
    shard(model, torch.device("cpu"))
    optimizer = build_optimizer(model, [[".", 1.0, 0.1]], 1e-2)
    checkpointer = ShardedCheckpointer(model, str(tmp_path), "", None, kept=2, optimizer=optimizer)
    for step in (1, 3, 5):
        checkpointer.save(f"model_{step:07d}", iteration=step)
    assert sorted(p.name for p in tmp_path.glob("model*")) == ["model_0000003.sharded", "model_0000005.sharded"]
    next((tmp_path / "model_0000005.sharded").glob("*.safetensors")).unlink()
    with caplog.at_level("WARNING"):
        assert checkpointer.resume() == 4
    assert "the folder has 0 of the 1 weights files that the training's processes wrote" in caplog.text
    checkpointer.save("model_best", tag=False, iteration=3, best=0.25)
    assert checkpointer.best() == 0.25

    torch.save({}, tmp_path / "model_0000006.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000006.pth")
    with pytest.raises(ValueError, match=r"model_0000006.pth was saved with SOLVER.SHARD False: resume with this"):
        checkpointer.resume()


def test_a_full_disk_leaves_the_sharded_folder_before(one_process, tmp_path, monkeypatch):
    checkpointer = ShardedCheckpointer(nn.Linear(1, 1), str(tmp_path), "", None)
    checkpointer.model.tower = SkySenseO(small_config()).tower
    checkpointer.save("model_final", iteration=1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.distributed.checkpoint.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(OSError, match=r"model_final.sharded could not be written.*No space left.*free space"):
        checkpointer.save("model_final", iteration=2)
    assert load_plain(tmp_path / "model_final.sharded")["iteration"] == 1


def test_what_cannot_be_sharded_is_said(dubai, tmp_path):
    with pytest.raises(ValueError, match="SHARD True needs 2 processes or more, not 1: give --num-gpus N"):
        train_run(tiny_config(CONFIG, tmp_path / "run", **{"SOLVER.SHARD": True}), resume=False)
    with pytest.raises(ValueError, match="PRECISION 'fp16' does not work with SOLVER.SHARD True: choose no, bf16"):
        check_sharding(2, "fp16")
