"""Checkpoints of a run, with Detectron2's names and layout, written atomically."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from safetensors import SafetensorError
from torch import Tensor, nn

from skysense_o.checkpoint import load_state, save_weights, state_to_save
from skysense_o.sharded_files import VALUES, write_sharded
from skysense_o.training.ema import MovingAverage
from skysense_o.training.sharding import whole_state
from skysense_o.weight_files import load_plain
from skysense_o.weight_paths import SHARDED, WeightsError, is_sharded
from skysense_o.whole_files import whole

logger = logging.getLogger(__name__)


class RunCheckpointer(Checkpointer):
    """Writes `<name>.pth` with weights, optimiser, scheduler and iteration.

    `model` holds the weights for inference: the moving average if there is one. The file has only tensors and plain
    values, so torch.load(weights_only=True) can read it. `.sharded` folders can be resumed too.
    """

    suffix = ".pth"

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
        path = Path(self.save_dir) / f"{name}{self.suffix}"
        with self.ema.applied() if self.ema else nullcontext():
            self._store(path, extra)
        if tag and self.save_to_disk:
            _write(path.with_name("last_checkpoint"), lambda temporary: temporary.write_text(path.name))
            for old in self._numbered()[self.kept :] if self.kept else ():
                shutil.rmtree(old) if is_sharded(old) else old.unlink()

    def _store(self, path: Path, extra: dict) -> None:
        if self.save_to_disk:
            data = self._state(extra)
            _write(path, lambda temporary: torch.save(data, temporary))

    def _state(self, extra: dict) -> dict:
        items = {key: item.state_dict() for key, item in self.checkpointables.items()}
        return {"model": state_to_save(self.model), **extra, **items}

    def export(self, name: str) -> None:
        """Write `<name>.safetensors` with weights in half precision and the config, for the demo and for sharing."""
        with self.ema.applied() if self.ema else nullcontext():
            state = whole_state(state_to_save(self.model))
            if self.save_to_disk:
                path = Path(self.save_dir) / f"{name}.safetensors"
                _write(path, lambda temporary: save_weights(self.model, temporary, self.config, torch.float16, state))

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
                data = self._read_all(path)
            except WeightsError as error:
                logger.warning("%s cannot be read: trying the one before. %s", path, error)
                continue
            file = str(path / VALUES if is_sharded(path) else path)
            self._read = {file: data}
            return self.load(file)["iteration"] + 1
        raise FileNotFoundError(f"no checkpoint in {self.save_dir} can be read: start without --resume")

    def best(self) -> float:
        """The metric of the best model so far; minus infinity if there is none."""
        for file in (Path(self.save_dir) / "model_best.pth", Path(self.save_dir) / f"model_best{SHARDED}" / VALUES):
            if file.is_file():
                stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                return stored.get("values", stored)["best"]
        return float("-inf")

    def _numbered(self) -> list[Path]:
        """All checkpoints `model_<iteration>` with the suffix that this run writes, the newest first."""
        return sorted(Path(self.save_dir).glob(f"model_[0-9]*{self.suffix}"), reverse=True)

    def _read_all(self, path: Path) -> dict:
        if not is_sharded(path):
            return load_plain(path)
        named = self.model.state_dict()
        ordered = [p for group in self.checkpointables["optimizer"].param_groups for p in group["params"]]

        def placed(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
            *parents, last = name.split("/")  # model/<name>, ema/trained/<name>, optimizer/state/<number>/exp_avg
            like = ordered[int(parents[2])] if parents[0] == "optimizer" else named.get(last)
            if like is None or like.shape != shape:  # the optimiser's step count; or a shape that the config changed
                return torch.empty(shape, dtype=dtype)
            # `empty_like` keeps the layout: AdamW's fused step pairs the elements of channels-last kernels by address.
            return torch.empty_like(like, dtype=dtype, requires_grad=False)

        return load_plain(path, placed=placed)

    def _load_file(self, f: str) -> dict:
        return self._read.pop(f) if f in self._read else super()._load_file(f)

    def _load_model(self, checkpoint: dict) -> None:
        load_state(self.model, checkpoint.pop("model"), self.save_dir)


class ShardedCheckpointer(RunCheckpointer):
    """Writes `<name>.sharded`, a folder with the same content, to which each process adds its part.

    All processes call its methods, at the same time.
    """

    suffix = SHARDED

    def _store(self, path: Path, extra: dict) -> None:
        with _disk_errors(path):
            write_sharded(path, self._state(extra))

    def _read_all(self, path: Path) -> dict:
        if not is_sharded(path) and path.exists():
            raise ValueError(
                f"{path} was saved with SOLVER.SHARD False: resume with this value, or start a new training from the"
                " file (MODEL.WEIGHTS)"
            )
        return super()._read_all(path)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Tell which checkpoint could not be written, and what to do."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError for disk errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = reason if str(path) in reason else f"{path} could not be written ({reason})"
        told = OSError(f"{what}. Older checkpoints are unchanged: free space, then continue with --resume")
        told.errno = getattr(error, "errno", None)
        raise told from error


def _write(path: Path, write) -> None:
    with _disk_errors(path), whole(path) as part:
        write(part)
