"""Checkpoints of a run: Detectron2's names and layout, written whole or not at all."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from skysense_o.checkpoint import load_state, save_weights, state_to_save
from skysense_o.training.ema import MovingAverage


class RunCheckpointer(Checkpointer):
    """`<name>.pth` with the weights to use under `model` (the moving average where there is one), beside optimiser,
    scheduler and iteration. Only tensors and plain values, so that torch.load(weights_only=True) reads it.
    """

    def __init__(
        self, model: nn.Module, folder: str, config: str, ema: MovingAverage | None, **checkpointables
    ) -> None:
        """config: the model's YAML, stored with exported weights. checkpointables: optimizer, scheduler, ..."""
        super().__init__(model, folder, save_to_disk=comm.is_main_process(), **checkpointables)
        self.config, self.ema = config, ema
        if ema is not None:
            self.add_checkpointable("ema", ema)

    def save(self, name: str, tag: bool = True, **extra) -> None:
        """Write to a temporary name, sync, rename. tag: `--resume` shall go on from this one."""
        if not self.save_to_disk:
            return
        with self.ema.applied() if self.ema else nullcontext():
            data = {"model": state_to_save(self.model), **extra}
            data.update((key, item.state_dict()) for key, item in self.checkpointables.items())
            path = Path(self.save_dir) / f"{name}.pth"
            _write(path, lambda temporary: torch.save(data, temporary))
        if tag:
            _write(path.with_name("last_checkpoint"), lambda temporary: temporary.write_text(path.name))

    def export(self, name: str) -> None:
        """`<name>.safetensors`: weights and config only, in half precision; for the demo and for sharing."""
        if self.save_to_disk:
            with self.ema.applied() if self.ema else nullcontext():
                path = Path(self.save_dir) / f"{name}.safetensors"
                _write(path, lambda temporary: save_weights(self.model, temporary, self.config, torch.float16))

    def resume(self) -> int:
        """Load the last checkpoint, all of it; the iteration to go on with."""
        return self.load(self.get_checkpoint_file())["iteration"] + 1

    def _load_model(self, checkpoint: dict) -> None:
        load_state(self.model, checkpoint.pop("model"), self.get_checkpoint_file())


def _write(path: Path, write) -> None:
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
