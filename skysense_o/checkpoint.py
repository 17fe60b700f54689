"""Load weights into models and save them. A checkpoint that does not fit is an error that lists every mismatch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from safetensors.torch import save_file
from torch import Tensor, nn

from skysense_o.config import default_config, merge_file, merge_text
from skysense_o.modeling.adapters import merge_lora, with_original_names
from skysense_o.published import CLIP_PREFIX, NOT_NEEDED, from_sam, published_names, to_ours
from skysense_o.weight_files import read_config, read_weights
from skysense_o.weight_paths import SHIPPED, SUFFIXES, WeightsError, find_weights, is_sharded, weights_hash
from skysense_o.whole_files import whole

__all__ = [  # includes names from weight_files.py and weight_paths.py, so that callers import from one module only
    "SHIPPED",
    "SUFFIXES",
    "Report",
    "WeightsError",
    "build_with_weights",
    "check_makes_masks",
    "config_of",
    "find_weights",
    "load_sam_decoder",
    "load_state",
    "load_weights",
    "read_config",
    "read_weights",
    "save_weights",
    "state_to_save",
    "weights_hash",
]

LARGE = 2**17
"""Tensors with more elements than this are stored as bfloat16 if `half` is set; norms, biases and scales are not."""


@dataclass
class Report:
    """The outcome for each tensor when a checkpoint was loaded into a model."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the model, not in the file
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the model
    misshaped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)  # missing but allowed to be missing: they keep their initial values
    passed_over: list[str] = field(default_factory=list)  # in the file, ignored on purpose

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors fit"]
        for title in ("missing", "unexpected", "misshaped", "new", "passed_over"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                lines.append(f"{len(names)} {title.replace('_', ' ')}: {shown}")
        return "; ".join(lines)


def config_of(path: Path | None, config_file: str | Path | None = None) -> CfgNode:
    """The config of a model for inference: from a YAML, or else from the weights file.

    Raises:
        FileNotFoundError: the YAML does not exist.
        WeightsError: no YAML is given, and the weights do not contain their config.
    """
    cfg = default_config()
    if path is not None and path.is_dir() and not is_sharded(path):
        cfg.MODEL.META_ARCHITECTURE = "Sam3"  # only the weights of SAM 3 are a folder; any other folder fails to load
    if config_file:
        merge_file(cfg, config_file)
    elif path is None or path.is_file() or is_sharded(path):
        stored = read_config(path)
        if stored is None:
            raise WeightsError(
                f"{path} does not hold its config: give a YAML (--config-file, config_file=), or the .safetensors that"
                " training writes"
            )
        merge_text(cfg, stored, f"in {path}")
    cfg.MODEL.TOWER.PRETRAINED = False  # the weights come from the checkpoint
    return cfg


OTHER_USES = {
    "EmbeddedVQA": "is for whole images (--task classify or ask)",
    "LlavaVQA": "answers questions (--task ask)",
    "ImageTextPretraining": "is where a training begins (MODEL.WEIGHTS)",
}
"""META_ARCHITECTURE of weights that make no masks -> what such weights are for."""


def check_makes_masks(cfg, path: Path) -> None:
    """Check that weights are of a model that makes masks.

    Raises:
        WeightsError: the weights are for another task, which the message names.
    """
    other = OTHER_USES.get(cfg.MODEL.META_ARCHITECTURE)
    if other:
        raise WeightsError(f"{path.name} makes no masks: it {other}; for masks give mini, or weights trained for them")


def build_with_weights(cfg: CfgNode, path: Path, half: bool = False, trust: bool = False) -> tuple[nn.Module, Report]:
    """Build the model of a config directly from the weights of a file.

    No parameter is initialised first, and tensors that need no cast stay memory-mapped. For a folder (SAM 3), the model
    itself reads the weights.

    Args:
        cfg: the model's config.
        path: see `read_weights`.
        half: cast large tensors to bfloat16.
        trust: see `read_weights`.

    Returns:
        The model in eval mode, and the report.

    Raises:
        WeightsError: the file cannot be read, or does not fit the config.
    """
    if path.is_dir() and not is_sharded(path):
        cfg.MODEL.WEIGHTS = str(path)
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
        for parameter in model.parameters() if half else ():
            if parameter.numel() > LARGE:
                parameter.data = parameter.data.to(torch.bfloat16)
        return model.eval(), Report(loaded=list(model.state_dict()))
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    report = load_state(model, _typed(read_weights(path, trust), half), path)
    empty = [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta]
    empty += [name for name, tensor in model.named_buffers() if tensor.is_meta]
    assert not empty, f"towers and decoders must create on the CPU all tensors that no checkpoint contains: {empty}"
    return model.eval(), report


def _typed(state: dict[str, Tensor], half: bool) -> dict[str, Tensor]:
    """Cast floating-point tensors to float32, or large ones to bfloat16; tensors of the right type are not copied."""

    def typed(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.bfloat16 if half and tensor.numel() > LARGE else torch.float32)

    return {name: tensor if NOT_NEEDED.search(name) else typed(tensor) for name, tensor in state.items()}


def load_weights(
    model: nn.Module, path: Path, allow_missing: Sequence[str] = (), ignore_unexpected: Sequence[str] = ()
) -> Report:
    """Copy the tensors of a file into a model.

    Weights that come with an installed package (`tower.installed`) may be missing from the file.

    Args:
        model: has a `tower` and a `text_bank`.
        path: see `read_weights`.
        allow_missing: regular expressions of parameters that may be missing; they keep their initial values.
        ignore_unexpected: regular expressions of tensors in the file that are ignored.

    Raises:
        WeightsError: the file cannot be read; or a tensor is missing, unexpected or of another shape.
    """
    state = read_weights(path)
    ours = set(model.state_dict())
    ignored = [n for n in state if n not in ours and any(re.search(p, n) for p in ignore_unexpected)]
    report = load_state(model, {n: t for n, t in state.items() if n not in set(ignored)}, path, allow_missing)
    report.passed_over += ignored
    return report


def load_state(
    model: nn.Module, state: dict[str, Tensor], source: str | Path, allow_missing: Sequence[str] = ()
) -> Report:
    """Copy a state dict into a model; its tensors have this project's names or those of the published checkpoints.

    A model on the meta device takes the tensors themselves instead of copies.

    Args:
        model: see `load_weights`.
        state: name -> tensor.
        source: where the state comes from, for the error message.
        allow_missing: see `load_weights`.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape.
    """
    ours, report = model.state_dict(), Report()
    if any(NOT_NEEDED.search(name) or name.startswith(CLIP_PREFIX) for name in state):  # a published checkpoint
        known = published_names(ours)
        report.passed_over = [name for name in state if NOT_NEEDED.search(name) and name not in known]
        state = to_ours({name: t for name, t in state.items() if name not in report.passed_over}, ours)
    if "tower.clip.logit_scale" in ours and not any(name in ours for name in state):  # open_clip's own checkpoint
        state = {f"tower.clip.{name}": tensor for name, tensor in state.items()}
    state = with_original_names(state, ours)
    for name, tensor in state.items():
        if name not in ours:
            report.unexpected.append(name)
        elif ours[name].shape != tensor.shape:
            report.misshaped.append(f"{name} {tuple(tensor.shape)} for {tuple(ours[name].shape)}")
        else:
            report.loaded.append(name)
    external = _external_prefixes(model)
    report.missing = [name for name in ours if name not in state and not name.startswith(external)]
    report.new = [name for name in report.missing if any(re.search(pattern, name) for pattern in allow_missing)]
    report.missing = [name for name in report.missing if name not in report.new]
    if report.missing or report.unexpected or report.misshaped:
        raise WeightsError(f"{source} does not fit this config's model: {report}; use the config it was trained with")
    fitting = {name: state[name] for name in report.loaded}
    model.load_state_dict(fitting, strict=False, assign=any(p.is_meta for p in model.parameters()))
    model.text_bank.weights_changed()
    return report


def load_sam_decoder(head: nn.Module, path: Path) -> Report:
    """Initialise a `SAMMaskHead` from a Segment Anything checkpoint, for all tensors whose shapes agree.

    Args:
        head: a `SAMMaskHead`.
        path: see `read_weights`.

    Raises:
        WeightsError: the file is no Segment Anything checkpoint, or no tensor in it has the shape that the head needs.
    """
    theirs, ours, report = from_sam(read_weights(path)), head.state_dict(), Report()
    for name, tensor in theirs.items():
        if name in ours and ours[name].shape == tensor.shape:
            report.loaded.append(name)
        elif name in ours:
            report.misshaped.append(f"{name} {tuple(tensor.shape)} for {tuple(ours[name].shape)}")
    report.new = [name for name in ours if name not in theirs]
    if not report.loaded:
        raise WeightsError(
            f"{path} has no decoder of Segment Anything that fits SEM_SEG_HEAD ({report}): give a checkpoint of"
            " Segment Anything, and keep the defaults of WIDTH, DEPTH, HEADS, MLP and SHARED_TOKENS"
        )
    head.load_state_dict({name: theirs[name] for name in report.loaded}, strict=False)
    return report


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model without the frozen weights that come with an installed package."""
    external = _external_prefixes(model)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(external)}


def save_weights(
    model: nn.Module,
    path: Path,
    config: str,
    dtype: torch.dtype | None = None,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a safetensors file with the config in its metadata, so that it can be loaded without another file.

    Args:
        model: low-rank updates (LoRA) are merged into their matrices.
        path: path of the new file.
        config: YAML of the model.
        dtype: floating-point tensors are cast to it; None: no cast.
        state: the result of `state_to_save` with whole tensors, if the model holds only a part of each tensor
            (SOLVER.SHARD); None: it is made from the model.
    """
    whole_state = merge_lora(state_to_save(model) if state is None else state)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in whole_state.items()}
    if dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    with whole(path) as part:
        save_file(state, part, metadata={"format": "pt", "config": config})
        sort_metadata(part)


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place, so that equal weights give equal bytes.

    safetensors writes metadata in the order of a hash table, which changes from run to run.
    """
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "sorting the metadata must not make it longer"
        file.seek(8)
        file.write(text.ljust(length))


def _external_prefixes(model: nn.Module) -> tuple[str, ...]:
    head = getattr(getattr(model, "sem_seg_head", None), "installed", ())
    prefixes = [f"tower.{prefix}" for prefix in model.tower.installed] + [f"sem_seg_head.{prefix}" for prefix in head]
    return (*prefixes, *getattr(model, "external", ()))
