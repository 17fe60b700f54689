"""Checkpoints that several processes write together: one safetensors file per process, and one file of plain values.

Tensors are written and read by torch.distributed.checkpoint, so any number of processes can read them. Its own format
is not used, because it has a table of contents in pickle form, and reading a pickle could execute code.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed

VALUES = "values.pth"
Placed = Callable[[str, torch.Size, torch.dtype], Tensor]
"""The path of a tensor in the dict, joined by slashes, its shape and type -> the tensor to read it into."""


def write_sharded(path: Path, state: dict) -> None:
    """Write a nested dict of tensors and plain values; every process calls this at the same time.

    Each process writes its part of the DTensors, and process 0 everything else. The folder gets its name when it is
    complete.

    Args:
        path: the folder; an older one of this name is replaced.
        state: its keys contain no slashes.

    Raises:
        OSError: a process could not write its part; an older folder is unchanged.
    """
    from torch.distributed import checkpoint  # takes a second to import, and inference rarely needs it
    from torch.distributed.checkpoint.api import CheckpointException

    part, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("part", "old"))
    tensors, values = _split(state)
    first = distributed.get_rank() == 0
    if first:
        shutil.rmtree(part, ignore_errors=True)  # left by a killed run, which may have had more processes
    distributed.barrier()
    try:
        checkpoint.save(
            tensors,
            storage_writer=checkpoint.HuggingFaceStorageWriter(str(part), save_distributed=True),
            planner=checkpoint.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
        )
    except CheckpointException as error:  # every process gets the same exception
        raise _cause(error) from error
    if first:
        torch.save({"processes": distributed.get_world_size(), "values": values}, part / VALUES)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        shutil.rmtree(old, ignore_errors=True)
    distributed.barrier()


def read_sharded(path: Path, placed: Placed | None = None, only: str = "") -> dict:
    """Read what `write_sharded` wrote, in any number of processes.

    Args:
        path: the folder.
        placed: where to read each tensor. Of a DTensor only the part of this process is read, and every process must
            call this function. None: this process alone reads whole tensors.
        only: read only this entry of the dict; "": all.

    Raises:
        Exception: the folder is damaged or incomplete, which raises many types of errors.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    stored = torch.load(path / VALUES, map_location="cpu", weights_only=True)
    found = len(list(path.glob("*.safetensors")))
    if found != stored["processes"]:
        raise OSError(
            f"the folder has {found} of the {stored['processes']} weights files that the training's processes wrote"
        )
    reader = checkpoint.HuggingFaceStorageReader(str(path))
    tensors = {
        name: (placed or _whole)(name, entry.size, entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if not only or name.startswith(f"{only}/")
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            checkpoint.load(tensors, storage_reader=reader, no_dist=placed is None)
    except CheckpointException as error:
        raise _cause(error) from error
    state = _join(stored["values"], tensors)
    return {only: state[only]} if only else state


def _whole(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _cause(error) -> OSError:
    """The error of one process as an OSError. torch's exception holds the errors of all processes, but it is no
    subclass of Exception, so most callers would not catch it."""
    rank, (cause, _) = next(iter(error.failures.items()))
    told = OSError(f"process {rank}: {cause}")
    told.errno = getattr(cause, "errno", None)
    return told


def _split(state: dict, prefix: str = "") -> tuple[dict[str, Tensor], dict]:
    """A nested dict -> its tensors by path, and the dict without them."""
    tensors, values = {}, {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value
        elif isinstance(value, dict):
            inner, values[key] = _split(value, f"{prefix}{key}/")
            tensors |= inner
        else:
            values[key] = value
    return tensors, values


def _join(values: dict, tensors: dict[str, Tensor]) -> dict:
    """Undo `_split`. A key that is not found as text is looked up as a number, as in the optimiser's state."""
    for name, tensor in tensors.items():
        *parents, last = name.split("/")
        node = values
        for key in parents:
            node = node[key] if key in node else node[int(key)]
        node[last] = tensor
    return values
