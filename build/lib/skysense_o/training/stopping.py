"""Stop a run before its last step: on a signal, or on a loss that is NaN or infinite."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from skysense_o.sample import Sample
from skysense_o.training.checkpointer import RunCheckpointer
from skysense_o.whole_files import whole

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL = 2.0
"""Signals that arrive within this time (in seconds) count as one signal."""


class Stopped(SystemExit):
    """Raised after a signal, once the checkpoint is written; the exit code is 128 + signal, as in shells."""


class StopOnSignal(HookBase):
    """On Ctrl-C or SIGTERM, finishes the step, saves a checkpoint, prints the command to resume, and exits.

    Any process may receive the signal; all processes stop after the same step. A signal within SAME_SIGNAL
    seconds of the first is ignored, because a terminal's Ctrl-C reaches each process twice: directly and through the
    launcher. Any later signal kills the run at once.
    """

    def __init__(self, checkpointer: RunCheckpointer, device: torch.device) -> None:
        self.checkpointer, self.device = checkpointer, device
        self.received, self._when, self._before = 0, 0.0, {}

    def before_train(self) -> None:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if not self.received:
            self.received, self._when = number, time.monotonic()
        elif time.monotonic() - self._when > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def after_step(self) -> None:
        received = torch.tensor(self.received, device=self.device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        if not received.item():
            return
        steps = self.trainer.iter + 1
        if steps < self.trainer.max_iter:
            self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
        logger.info(
            "Signal %d: saved after step %d of %d. Resume with:\n%s",
            received,
            steps,
            self.trainer.max_iter,
            resume_command(),
        )
        raise Stopped(128 + int(received))

    def after_train(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def resume_command() -> str:
    """The command line of this run, with --resume."""
    words = [word for word in sys.argv if word != "--resume"]
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return " ".join(["python", *words[:first], "--resume", *words[first:]])


class LossError(FloatingPointError):
    """A loss or a gradient is NaN or infinite."""


def check_losses(losses: dict[str, Tensor], samples: Sequence[Sample], iteration: int, folder: str | Path) -> None:
    """Raise LossError if a loss is NaN or infinite, and write the batch to a file.

    Args:
        losses: scalars.
        samples: the batch.
        iteration: current iteration, from 0.
        folder: output folder.

    Raises:
        LossError: the message names the loss, the images and the file.
    """
    values = torch.stack([loss.detach().float() for loss in losses.values()])
    if torch.isfinite(values).all():
        return
    wrong = {name: value for name, value in zip(losses, values.tolist()) if value - value != 0}
    raise dump(f"{wrong} in step {iteration + 1}", losses, samples, iteration, folder)


def dump(
    reason: str, losses: dict[str, Tensor], samples: Sequence[Sample], iteration: int, folder: str | Path
) -> LossError:
    """Write a batch to `nan_<iteration>_<process>.pth`, with tensors and plain values only.

    Args:
        reason: start of the error message.
        losses, samples, iteration, folder: see `check_losses`.

    Returns:
        The error to raise.
    """
    path = Path(folder) / f"nan_{iteration:07d}_{comm.get_rank()}.pth"
    plain = [{key: _plain(value) for key, value in sample.items()} for sample in samples]
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    with whole(path) as part:
        torch.save({"iteration": iteration, "losses": values, "samples": plain}, part)
    files = ", ".join(dict.fromkeys(str(sample.get("file_name", "?")) for sample in samples))
    return LossError(
        f"{reason}, for the images {files}; the batch is in {path}. Lower SOLVER.BASE_LR, set SOLVER.PRECISION no, or"
        " leave the images out; then continue with --resume"
    )


def _plain(value):
    if isinstance(value, Tensor | int | float | str):
        return value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [list(words) for words in value.phrases] if hasattr(value, "phrases") else str(value)
