"""Checkpoints of a run, with Detectron2's names and layout, written atomically."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from safetensors import SafetensorError
from torch import nn

from skysense_o.checkpoint import load_state, save_weights, state_to_save
from skysense_o.training.ema import MovingAverage
from skysense_o.weight_files import load_plain
from skysense_o.weight_paths import WeightsError
from skysense_o.whole_files import whole

logger = logging.getLogger(__name__)


class RunCheckpointer(Checkpointer):
    """Writes `<name>.pth` with weights, optimiser, scheduler and iteration.

    `model` holds the weights for inference: the moving average if there is one. The file has only tensors and plain
    values, so torch.load(weights_only=True) can read it.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str,
        config: str,
        ema: MovingAverage | None,
        kept: int = 0,
        **checkpointables,
    ) -> None:
        """
        Args:
            model: the model in training.
            folder: output folder.
            config: YAML of the model, stored with exported weights.
            ema: the moving average of the weights, or None.
            kept: number of the newest `model_<iteration>.pth` to keep; 0: all.
            checkpointables: optimizer, scheduler, scaler, ...
        """
        super().__init__(model, folder, save_to_disk=comm.is_main_process(), **checkpointables)
        self.config, self.ema, self.kept = config, ema, kept
        self._read: dict[str, dict] = {}
        if ema is not None:
            self.add_checkpointable("ema", ema)

    def save(self, name: str, tag: bool = True, **extra) -> None:
        """Write a checkpoint to a temporary file, sync it and rename it.

        Args:
            name: file name without suffix.
            tag: `--resume` starts from this checkpoint.
            extra: more values to store, such as the iteration.

        Raises:
            OSError: the file could not be written; older checkpoints are unchanged.
        """
        if not self.save_to_disk:
            return
        with self.ema.applied() if self.ema else nullcontext():
            data = {"model": state_to_save(self.model), **extra}
            data.update((key, item.state_dict()) for key, item in self.checkpointables.items())
            path = Path(self.save_dir) / f"{name}.pth"
            _write(path, lambda temporary: torch.save(data, temporary))
        if tag:
            _write(path.with_name("last_checkpoint"), lambda temporary: temporary.write_text(path.name))
            for old in self._numbered()[self.kept :] if self.kept else ():
                old.unlink()

    def export(self, name: str) -> None:
        """Write `<name>.safetensors` with weights in half precision and the config, for the demo and for sharing."""
        if self.save_to_disk:
            with self.ema.applied() if self.ema else nullcontext():
                path = Path(self.save_dir) / f"{name}.safetensors"
                _write(path, lambda temporary: save_weights(self.model, temporary, self.config, torch.float16))

    def resume(self) -> int:
        """Load the latest readable checkpoint.

        Returns:
            The next iteration.

        Raises:
            FileNotFoundError: no checkpoint can be read.
        """
        last = Path(self.get_checkpoint_file())
        for path in dict.fromkeys([last, *self._numbered()]):
            try:
                self._read = {str(path): load_plain(path)}
            except WeightsError as error:
                logger.warning("%s cannot be read: trying the one before. %s", path, error)
                continue
            return self.load(str(path))["iteration"] + 1
        raise FileNotFoundError(f"no checkpoint in {self.save_dir} can be read: start without --resume")

    def _numbered(self) -> list[Path]:
        """All `model_<iteration>.pth`, the newest first."""
        return sorted(Path(self.save_dir).glob("model_[0-9]*.pth"), reverse=True)

    def _load_file(self, f: str) -> dict:
        return self._read.pop(f) if f in self._read else super()._load_file(f)

    def _load_model(self, checkpoint: dict) -> None:
        load_state(self.model, checkpoint.pop("model"), self.save_dir)


def _write(path: Path, write) -> None:
    try:
        with whole(path) as part:
            write(part)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError for disk errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = reason if str(path) in reason else f"{path} could not be written ({reason})"
        told = OSError(f"{what}. Older checkpoints are unchanged: free space, then continue with --resume")
        told.errno = getattr(error, "errno", None)
        raise told from error
