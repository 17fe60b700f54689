"""Weights from files and to files. A checkpoint fits, or the error says why; none of its code is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from skysense_o.modeling.adapters import merged, with_original_names
from skysense_o.published import CLIP_PREFIX, NOT_NEEDED, published_names, to_ours

SHIPPED = Path(__file__).resolve().parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit."""


@dataclass
class Report:
    """What became of each tensor of a checkpoint and of a model."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # the model has it, the file has not
    unexpected: list[str] = field(default_factory=list)  # the file has it, the model has not
    misshaped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)  # missing, and allowed to be: they start from scratch
    passed_over: list[str] = field(default_factory=list)  # published tensors that no inference needs

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors fit"]
        for title in ("missing", "unexpected", "misshaped", "new", "passed_over"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(names[:8]) + (f", ... ({len(names) - 8} more)" if len(names) > 8 else "")
                lines.append(f"{len(names)} {title.replace('_', ' ')}: {shown}")
        return "; ".join(lines)


def find_weights(name: str | Path) -> Path:
    """A path, or the name of shipped weights such as "mini".

    Raises:
        FileNotFoundError: neither a file nor a shipped name; lists the shipped ones.
        WeightsError: a file type that is not read.
    """
    path = Path(name).expanduser()
    shipped = SHIPPED / f"{name}.safetensors"
    if not path.is_file() and shipped.is_file():
        return shipped
    if not path.is_file():
        there = ", ".join(repr(p.stem) for p in sorted(SHIPPED.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"no weights at {str(name)!r}: give a file ({', '.join(SUFFIXES)}) or one of: {there}")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path} ends in {path.suffix!r}: weights are read from {', '.join(SUFFIXES)}")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped and not copied."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        blob = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} is not a readable checkpoint ({first_line}): is it complete?") from error
    if isinstance(blob, dict) and isinstance(blob.get("clip"), dict):
        return _skysense_clip(blob)
    state = blob.get("model", blob) if isinstance(blob, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no table of tensors, neither at its top nor under 'model'")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def read_config(path: Path) -> str | None:
    """The YAML of the model that a safetensors file holds beside its weights, if it does."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("config")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable checkpoint ({error}): is it complete?") from error


def _skysense_clip(blob: dict) -> dict[str, Tensor]:
    """`skysense_clip.ckpt`: "clip" holds the towers, `backbone_gep.X` of "model" replaces `visual.X`."""
    state = dict(blob["clip"])
    for name, tensor in blob.get("model", {}).items():
        if name.startswith("backbone_gep."):
            state["visual." + name.removeprefix("backbone_gep.")] = tensor
    return {CLIP_PREFIX + name: tensor for name, tensor in state.items()}


def load_weights(model: nn.Module, path: Path, may_lack: Sequence[str] = (), unwanted: Sequence[str] = ()) -> Report:
    """Copy a file's tensors into a model.

    What an installed package brings (`tower.installed`) may be missing; anything else that is missing, unexpected or
    of another shape is an error, but for what is missing and fits a pattern of `may_lack`. Names that fit one of
    `unwanted` are passed over.
    """
    state = read_weights(path)
    ours = set(model.state_dict())
    left_out = [n for n in state if n not in ours and any(re.search(p, n) for p in unwanted)]
    report = load_state(model, {n: t for n, t in state.items() if n not in set(left_out)}, path, may_lack)
    report.passed_over += left_out
    return report


def load_state(model: nn.Module, state: dict[str, Tensor], source: str | Path, may_lack: Sequence[str] = ()) -> Report:
    """As `load_weights`, for a table of tensors that is at hand; `source` names it in the error."""
    ours, report = model.state_dict(), Report()
    if any(NOT_NEEDED.search(name) or name.startswith(CLIP_PREFIX) for name in state):  # a published checkpoint
        wanted = published_names(ours)
        report.passed_over = [name for name in state if NOT_NEEDED.search(name) and name not in wanted]
        state = to_ours({name: t for name, t in state.items() if name not in report.passed_over}, ours)
    state = with_original_names(state, ours)
    for name, tensor in state.items():
        if name not in ours:
            report.unexpected.append(name)
        elif ours[name].shape != tensor.shape:
            report.misshaped.append(f"{name} {tuple(tensor.shape)} for {tuple(ours[name].shape)}")
        else:
            report.loaded.append(name)
    brought = _brought_by_packages(model)
    report.missing = [name for name in ours if name not in state and not name.startswith(brought)]
    report.new = [name for name in report.missing if any(re.search(pattern, name) for pattern in may_lack)]
    report.missing = [name for name in report.missing if name not in report.new]
    if report.missing or report.unexpected or report.misshaped:
        raise WeightsError(f"{source} does not fit this config's model: {report}; use the config it was trained with")
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    model.text_bank.weights_changed()
    return report


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors without what installed packages bring."""
    brought = _brought_by_packages(model)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(brought)}


def save_weights(model: nn.Module, path: Path, config: str, dtype: torch.dtype | None = None) -> None:
    """Write safetensors; the config's YAML goes along, so that the file is enough; low-rank updates are
    merged. dtype: of floating tensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in merged(state_to_save(model)).items()}
    if dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    save_file(state, path, metadata={"format": "pt", "config": config})


def weights_hash(path: Path) -> str:
    """SHA-256 of a file, as results carry it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(2**20), b""):
        digest.update(block)
    return digest.hexdigest()


def _brought_by_packages(model: nn.Module) -> tuple[str, ...]:
    return tuple(f"tower.{prefix}" for prefix in model.tower.installed)
