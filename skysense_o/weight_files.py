"""Read files of weights. Reading never executes code from a file unless `trust=True`."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skysense_o.published import CLIP_PREFIX
from skysense_o.weight_paths import WeightsError

logger = logging.getLogger(__name__)


def read_weights(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a file, memory-mapped.

    Args:
        path: .safetensors, .pth, .pt, .ckpt or .pkl.
        trust: also read pickles that hold more than tensors, which executes any code in them.

    Returns:
        name -> tensor.

    Raises:
        WeightsError: the file cannot be read, or holds no table of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        blob = _unpickle(path) if trust else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "is it complete? If it is an old pickle from a source that you trust: --trust-checkpoint"
        raise WeightsError(f"{path} is not a readable checkpoint ({first_line}): {hint}") from error
    if isinstance(blob, dict) and isinstance(blob.get("clip"), dict):
        return _skysense_clip(blob)
    state = blob.get("model", blob) if isinstance(blob, dict) else None
    if isinstance(state, dict):
        state = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in state.items()}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no table of tensors, neither at its top level nor under 'model'")
    if state.keys() != blob.keys():
        logger.info("%s also holds %s: ignored", path, ", ".join(sorted(map(str, blob.keys() - {"model"}))))
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _unpickle(path: Path):
    """Read Detectron2's .pkl, or a .pth that holds more than tensors."""
    logger.warning("%s is read as a pickle because you trust it: any code in it is executed now", path)
    if path.suffix == ".pkl":
        with open(path, "rb") as file:
            return pickle.load(file, encoding="latin1")
    return torch.load(path, map_location="cpu", weights_only=False)


def read_config(path: Path) -> str | None:
    """The YAML config of the model in the metadata of a safetensors file, or None.

    Raises:
        WeightsError: the file cannot be read.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("config")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable checkpoint ({error}): is it complete?") from error


def _skysense_clip(blob: dict) -> dict[str, Tensor]:
    """The tensors of `skysense_clip.ckpt`: the towers under "clip", with `visual.X` replaced by `backbone_gep.X`."""
    state = dict(blob["clip"])
    for name, tensor in blob.get("model", {}).items():
        if name.startswith("backbone_gep."):
            state["visual." + name.removeprefix("backbone_gep.")] = tensor
    return {CLIP_PREFIX + name: tensor for name, tensor in state.items()}
