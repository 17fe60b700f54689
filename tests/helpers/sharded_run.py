"""Train a config three times in the processes of torchrun: with DDP, sharded, and sharded but resumed half-way.

torchrun --nproc_per_node 2 sharded_run.py CONFIG FOLDER KEY VALUE ...

Writes FOLDER/losses.json, {name of the run: total loss of each step}, and FOLDER/held_<rank>.json, {name of the run:
number of parameter and optimiser values that this process holds}.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import skysense_o.data  # noqa: F401
from skysense_o.config import default_config
from skysense_o.training.run import train
from skysense_o.training.trainer import Trainer, join_processes

config, folder, words = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
losses, held = {}, {}


class Recorded(Trainer):
    """A trainer that records the mean loss over all processes, and how many values this process holds in memory."""

    def _write_metrics(self, loss_dict, data_time, prefix=""):
        super()._write_metrics(loss_dict, data_time, prefix)
        total = sum(loss.double() for loss in loss_dict.values())
        torch.distributed.all_reduce(total)
        losses[name].append(float(total) / torch.distributed.get_world_size())
        states = [value for state in self.optimizer.optimizer.state.values() for value in state.values()]
        tensors = [*(p for p in self.model.parameters() if p.requires_grad), *states]
        held[name] = sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def run(shard: bool, resume: bool) -> None:
    cfg = default_config()
    cfg.merge_from_file(config)
    cfg.merge_from_list([*words, "SOLVER.SHARD", shard, "OUTPUT_DIR", str(folder / name)])
    (folder / name).mkdir(exist_ok=True)
    losses[name] = []
    torch.manual_seed(torch.distributed.get_rank())  # each process draws different initial weights
    train(cfg, resume)


if __name__ == "__main__":
    first = default_config()
    first.MODEL.DEVICE = "cpu"
    join_processes(first)
    rank = torch.distributed.get_rank()
    import skysense_o.training.run as module

    module.Trainer = Recorded
    for name in ("ddp", "whole"):
        run(name != "ddp", False)
    name = "parts"
    if rank == 0:
        (folder / name).mkdir()
        shutil.copytree(folder / "whole/model_0000001.sharded", folder / name / "model_0000001.sharded")
        (folder / name / "last_checkpoint").write_text("model_0000001.sharded")
    torch.distributed.barrier()
    run(True, True)
    (folder / f"held_{rank}.json").write_text(json.dumps(held))
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()
