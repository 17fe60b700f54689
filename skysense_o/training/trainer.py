"""The training loop: trainer, hooks and events of Detectron2; devices, precision and processes of Accelerate."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

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
from skysense_o.training.sharding import clip_gradients
from skysense_o.training.stopping import check_losses, dump

logger = logging.getLogger(__name__)


def join_processes(cfg) -> bool:
    """Join the process group of torchrun or `accelerate launch`, which environment variables describe.

    Args:
        cfg: the run's config.

    Returns:
        Whether there is a process group.

    Raises:
        ValueError: the run was started by `accelerate launch --cpu`, which starts one process for any --num_processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "LOCAL_RANK" not in os.environ:
            raise ValueError(
                "'accelerate launch --cpu' starts only one process for any --num_processes: use --multi_gpu"
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
    """Build the Accelerator for the device and precision of the config, in the processes that are running.

    Detectron2's launch() does not tell Accelerate about its processes, so they are written to the environment first.

    Args:
        cfg: the run's config.

    Raises:
        RuntimeError: Accelerate and Detectron2 disagree about the number of processes.
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
        torch.cuda.set_device(device)  # otherwise Accelerate would move the model to the first GPU
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


def _precision(name: str, device: torch.device) -> str:
    """Replace "auto" by bf16 if the device has it natively, else by no; emulated bf16 is slower than float32."""
    if name != "auto":
        return name
    return "bf16" if has_bf16(device) else "no"


class Trainer(SimpleTrainer):
    """A trainer whose `run_step` is one optimiser step over SOLVER.ACCUMULATION micro-batches."""

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
            model: prepared by the accelerator, or sharded.
            optimizer: prepared by the accelerator.
            loader: not prepared by the accelerator, because its sampler already shards the data.
            accelerator: made by `build_accelerator`.
            clip_norm: maximum norm of the gradient; None: no clipping.
            seed: seed of the run.
            folder: output folder, for the batch of a loss that is NaN.
        """
        super().__init__(model, loader, optimizer)
        self.accelerator, self.clip_norm, self.seed, self.folder = accelerator, clip_norm, seed, folder

    def before_step(self) -> None:
        """Seed the model's randomness from seed, step and process, so that resuming is exact."""
        super().before_step()
        torch.manual_seed(int(np.random.SeedSequence((self.seed, self.iter, comm.get_rank())).generate_state(1)[0]))

    def run_step(self) -> None:
        accelerator, total, data_time, count = self.accelerator, {}, 0.0, 0
        step_start = time.perf_counter()
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
                    accelerator.unscale_gradients()
                    norm = clip_gradients(self.model.parameters(), self.clip_norm or float("inf"))
                    if not torch.isfinite(norm) and accelerator.scaler is None:  # a gradient scaler skips such a step
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
        speed = count * comm.get_world_size() / (time.perf_counter() - step_start)
        get_event_storage().put_scalars(images_per_second=speed, peak_memory_gib=peak_memory(accelerator.device))


def peak_memory(device: torch.device) -> float:
    """Peak memory so far, in GiB: of the GPU for a CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class FollowWeights(HookBase):
    """Updates the moving average after each step, if there is one."""

    def __init__(self, ema: MovingAverage | None) -> None:
        self.ema = ema

    def after_step(self) -> None:
        if self.ema:
            self.ema.update()


class Validate(HookBase):
    """Evaluates every `period` steps and at the end, with the moving average; saves the best model as model_best."""

    def __init__(self, period: int, evaluate: Callable[[], dict[str, float]], checkpointer: RunCheckpointer) -> None:
        """
        Args:
            period: number of steps; 0: only at the end.
            evaluate: returns metrics by name; the first metric chooses the best model, larger is better.
            checkpointer: saves the best model.
        """
        self.period, self.evaluate, self.checkpointer = period, evaluate, checkpointer
        self.best = float("-inf")

    def before_train(self) -> None:
        """When resuming, read the best metric so far."""
        if self.trainer.start_iter:
            self.best = self.checkpointer.best()

    def after_step(self) -> None:
        steps = self.trainer.iter + 1
        if steps == self.trainer.max_iter or (self.period and steps % self.period == 0):
            ema = self.checkpointer.ema
            with ema.applied() if ema else nullcontext():
                numbers = self.evaluate()
            self.trainer.storage.put_scalars(**numbers, smoothing_hint=False)
            metric = next(iter(numbers), None)
            if metric and numbers[metric] > self.best:
                self.best = numbers[metric]
                self.checkpointer.save("model_best", tag=False, iteration=self.trainer.iter, best=self.best)
                logger.info("Best %s so far: %.4f after %d steps", metric, self.best, steps)


class SaveCheckpoints(HookBase):
    """Saves `model_<iteration>.pth` every `period` steps, and `model_final.pth` and `.safetensors` at the end."""

    def __init__(self, period: int, checkpointer: RunCheckpointer) -> None:
        self.period, self.checkpointer = period, checkpointer

    def after_step(self) -> None:
        steps = self.trainer.iter + 1
        if steps == self.trainer.max_iter:
            self.checkpointer.save("model_final", iteration=self.trainer.iter)
            self.checkpointer.export("model_final")
        elif self.period and steps % self.period == 0:
            self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
