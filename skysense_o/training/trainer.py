"""The training loop: Detectron2's trainer, hooks and events; devices, precision and processes from Accelerate."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from skysense_o.device import choose_device, has_bf16
from skysense_o.training.checkpointer import RunCheckpointer
from skysense_o.training.ema import MovingAverage
from skysense_o.training.stopping import check_losses, dump

logger = logging.getLogger(__name__)


def join_processes(cfg) -> bool:
    """Join the process group that torchrun or `accelerate launch` speaks of in the environment; whether there is one.

    Raises:
        ValueError: `accelerate launch --cpu`, which starts a single process whatever number it is given.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "LOCAL_RANK" not in os.environ:
            raise ValueError(
                "'accelerate launch --cpu' starts one process only, whatever --num_processes says: use --multi_gpu"
                " instead (with MODEL.DEVICE cpu), or torchrun"
            )
        return False
    cuda = torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])))
    return True


def build_accelerator(cfg) -> Accelerator:
    """For the device and precision of the config, in the processes that are already running.

    Detectron2's launch() tells Accelerate nothing of its processes, so they are written to the environment first.

    Raises:
        RuntimeError: Accelerate and Detectron2 disagree on how many processes there are.
    """
    if comm.get_world_size() > 1:
        os.environ.update(
            RANK=str(comm.get_rank()),
            WORLD_SIZE=str(comm.get_world_size()),
            LOCAL_RANK=str(comm.get_local_rank()),
            LOCAL_WORLD_SIZE=str(comm.get_local_size()),
        )
    device = choose_device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else Accelerate would move the model to the first GPU
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=_precision(cfg.SOLVER.PRECISION, device),
        gradient_accumulation_steps=cfg.SOLVER.ACCUMULATION,
        step_scheduler_with_optimizer=False,
    )
    if accelerator.num_processes != comm.get_world_size():
        raise RuntimeError(
            f"Accelerate sees {accelerator.num_processes} processes, Detectron2 {comm.get_world_size()}: start with"
            " 'python tools/train_net.py --num-gpus N', torchrun, or accelerate launch --multi_gpu"
        )
    return accelerator


def _precision(wanted: str, device: torch.device) -> str:
    """ "auto" is bf16 where the processor multiplies it natively (elsewhere it is slower than float32), else no."""
    if wanted != "auto":
        return wanted
    return "bf16" if has_bf16(device) else "no"


class Trainer(SimpleTrainer):
    """One `run_step` is one update, of as many micro-batches as SOLVER.ACCUMULATION says."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        clip_norm: float | None,
        seed: int,
        folder: str,
    ) -> None:
        """
        Args:
            model, optimizer: prepared by the accelerator; loader: not (its sampler shards by itself).
            clip_norm: largest norm of all gradients together; None: as they are.
            folder: where the batch goes whose loss is no number.
        """
        super().__init__(model, loader, optimizer)
        self.accelerator, self.clip_norm, self.seed, self.folder = accelerator, clip_norm, seed, folder

    def before_step(self) -> None:
        """The model's randomness is a function of seed, step and process, so a resumed run draws what it would have."""
        super().before_step()
        torch.manual_seed(int(np.random.SeedSequence((self.seed, self.iter, comm.get_rank())).generate_state(1)[0]))

    def run_step(self) -> None:
        accelerator, total, data_time, count = self.accelerator, {}, 0.0, 0
        begun = time.perf_counter()
        for _ in range(accelerator.gradient_accumulation_steps):
            start = time.perf_counter()
            samples = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    losses = self.model(samples)
                check_losses(losses, samples, self.iter, self.folder)
                accelerator.backward(sum(losses.values()))
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm or float("inf"))
                    if not torch.isfinite(norm) and accelerator.scaler is None:  # a scaler skips such a step
                        raise dump(
                            f"gradient norm {norm} in step {self.iter + 1}", losses, samples, self.iter, self.folder
                        )
                    get_event_storage().put_scalar("gradient_norm", float(norm))
                self.optimizer.step()
                self.optimizer.zero_grad()
            count += len(samples)
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss.detach() / accelerator.gradient_accumulation_steps
        self._write_metrics(total, data_time)
        speed = count * comm.get_world_size() / (time.perf_counter() - begun)
        get_event_storage().put_scalars(images_per_second=speed, peak_memory_gib=peak_memory(accelerator.device))


def peak_memory(device: torch.device) -> float:
    """Most memory held so far, in GiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class FollowWeights(HookBase):
    """After each step the moving average follows, where there is one."""

    def __init__(self, ema: MovingAverage | None) -> None:
        self.ema = ema

    def after_step(self) -> None:
        if self.ema:
            self.ema.update()


class Validate(HookBase):
    """Every `period` steps and at the end: evaluate (with the moving average), log, keep the best as model_best."""

    def __init__(self, period: int, evaluate: Callable[[], dict[str, float]], checkpointer: RunCheckpointer) -> None:
        """evaluate: gives numbers by name; the first is the one to be largest."""
        self.period, self.evaluate, self.checkpointer = period, evaluate, checkpointer
        self.best = float("-inf")

    def before_train(self) -> None:
        """A resumed run must not take a worse model for its best."""
        path = Path(self.checkpointer.save_dir) / "model_best.pth"
        if self.trainer.start_iter and path.is_file():
            self.best = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["best"]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self.period and done % self.period == 0):
            ema = self.checkpointer.ema
            with ema.applied() if ema else nullcontext():
                numbers = self.evaluate()
            self.trainer.storage.put_scalars(**numbers, smoothing_hint=False)
            metric = next(iter(numbers), None)
            if metric and numbers[metric] > self.best:
                self.best = numbers[metric]
                self.checkpointer.save("model_best", tag=False, iteration=self.trainer.iter, best=self.best)
                logger.info("Best %s so far: %.4f after %d steps", metric, self.best, done)


class SaveCheckpoints(HookBase):
    """Every `period` steps `model_<iteration>.pth`, at the end `model_final.pth` and `model_final.safetensors`."""

    def __init__(self, period: int, checkpointer: RunCheckpointer) -> None:
        self.period, self.checkpointer = period, checkpointer

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.checkpointer.save("model_final", iteration=self.trainer.iter)
            self.checkpointer.export("model_final")
        elif self.period and done % self.period == 0:
            self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
