"""Read weights files. Reading never executes code from a file unless `trust=True`."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skysense_o.published import CLIP_PREFIX
from skysense_o.sharded_files import Placed, read_sharded
from skysense_o.weight_paths import WeightsError, is_sharded

logger = logging.getLogger(__name__)

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net")
"""Keys under which programs store the table of tensors: Detectron2; Lightning and mmsegmentation; ..."""


def read_weights(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a file, memory-mapped where its format permits that.

    Checkpoints of other programs are understood: the table of tensors may be at the top level or under one of
    WRAPPERS, and `module.` and `_orig_mod.`, which DistributedDataParallel and torch.compile add, are removed.

    Args:
        path: .safetensors, .pth, .pt, .ckpt or .pkl, or a .sharded folder.
        trust: also read pickles that hold more than tensors, which executes any code in them.

    Returns:
        name -> tensor.

    Raises:
        WeightsError: the file cannot be read, or holds no table of tensors.
    """
    plain = not trust or path.suffix == ".safetensors" or is_sharded(path)
    blob = load_plain(path, "model") if plain else _unpickle(path)
    if isinstance(blob, dict) and isinstance(blob.get("clip"), dict):
        return _tensors(_skysense_clip(blob), path)
    table, ignored = blob, set()
    while (inner := _wrapped(table)) is not None:
        ignored |= set(map(str, table)) - {inner}
        table = table[inner]
    state = _tensors(table, path)
    ignored |= set(table) - set(state) if isinstance(table, dict) else set()
    if ignored:
        logger.info("%s also holds %s: ignored", path, ", ".join(sorted(map(str, ignored))))
    return _plain_names(state, path)


def load_plain(path: Path, only: str = "", placed: Placed | None = None) -> Any:
    """Read a weights file without executing code. It may hold tensors, dicts, lists and plain values.

    Args:
        path: see `read_weights`.
        only, placed: for a .sharded folder, see `read_sharded`.

    Raises:
        WeightsError: the file is damaged, or holds values of other types.
    """
    try:
        if is_sharded(path):
            return read_sharded(path, placed, only)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        mmap = zipfile.is_zipfile(path)  # older files (before torch 1.6) are not zips and cannot be memory-mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged files raise many types of errors
        more_than_tensors = isinstance(error, pickle.UnpicklingError) and not is_sharded(path)
        raise _unreadable(path, error, more_than_tensors) from error


def _unreadable(path: Path, error: Exception, more_than_tensors: bool = False) -> WeightsError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if "nsupported" in line] or lines  # torch prints the reason after some advice
    reason = lines[0].removesuffix(":")[:200] if lines else type(error).__name__
    if not isinstance(error, (OSError, RuntimeError, pickle.UnpicklingError, SafetensorError)) and lines:
        reason = f"{type(error).__name__}: {reason}"
    hint = "is it complete?"
    if more_than_tensors:
        hint += " If it is an old pickle from a source that you trust: --trust-checkpoint"
    return WeightsError(f"{path} is not a readable checkpoint ({reason}): {hint}")


def _wrapped(table) -> str | None:
    """The key under which a checkpoint keeps its table of tensors; None if the checkpoint itself is the table."""
    if not isinstance(table, dict):
        return None
    return next((key for key in WRAPPERS if isinstance(table.get(key), dict)), None)


def _tensors(table, path: Path) -> dict[str, Tensor]:
    """The entries of a table that are tensors or NumPy arrays of numbers; entries of other types are left out."""
    state = {}
    for name, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(np.asarray(value, order="C"))
        if isinstance(value, Tensor):
            state[name] = value
    if not state:
        raise WeightsError(
            f"{path} holds no table of tensors, neither at its top level nor under {', '.join(map(repr, WRAPPERS))}:"
            " give a weights file"
        )
    wrong = [name for name in state if not isinstance(name, str)]
    if wrong:
        raise WeightsError(
            f"{path} has a tensor whose name is {wrong[0]!r} and not text, as in the state of an optimizer: give the"
            " checkpoint of the model"
        )
    return state


def _plain_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers around a model add to names."""
    plain = {}
    for name, tensor in state.items():
        short = re.sub(r"(^|(?<=\.))_orig_mod\.", "", name)
        short = re.sub(r"^(module\.)+", "", short)
        if short in plain:
            raise WeightsError(f"{path} holds {short!r} twice, with and without a wrapper's prefix: keep one of them")
        plain[short] = tensor
    if all(name.startswith("model.") for name in plain):  # in Lightning, the model is an attribute of the module
        plain = {name.removeprefix("model."): tensor for name, tensor in plain.items()}
    return plain


def _unpickle(path: Path):
    """Read Detectron2's .pkl, or a .pth that holds more than tensors."""
    logger.warning("%s is read as a pickle because you trust it: any code in it is executed now", path)
    try:
        if path.suffix == ".pkl":
            with open(path, "rb") as file:
                return pickle.load(file, encoding="latin1")
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise _unreadable(path, error) from error


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
    except Exception as error:  # damaged files raise many types of errors
        raise _unreadable(path, error) from error


def _skysense_clip(blob: dict) -> dict[str, Tensor]:
    """The tensors of `skysense_clip.ckpt`: the towers under "clip", where `backbone_gep.X` replaces `visual.X`."""
    state = dict(blob["clip"])
    model = blob.get("model")
    for name, tensor in model.items() if isinstance(model, dict) else ():
        if str(name).startswith("backbone_gep."):
            state["visual." + name.removeprefix("backbone_gep.")] = tensor
    return {f"{CLIP_PREFIX}{name}": tensor for name, tensor in state.items()}
