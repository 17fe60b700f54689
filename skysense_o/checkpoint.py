"""Weights from files and to files. A checkpoint fits, or the error says why; none of its code is executed, unless its
reader says that it trusts it.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from skysense_o.modeling.adapters import merge_lora, with_original_names
from skysense_o.published import CLIP_PREFIX, NOT_NEEDED, from_sam, published_names, to_ours

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).resolve().parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
HUB = re.compile(r"hf://(?P<repo>[^/]+/[^/]+)(?:/(?P<file>[^#]+))?")
FOLDER_FILES = ("*.json", "*.txt", "*.safetensors")
"""Of a model that is a whole repository: its configs, its tokenizer and its weights in one of their forms."""
LARGE = 2**17
"""Tensors of more numbers are held in half precision where that is asked for; norms, biases and scales are not."""


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
    """A path, the name of shipped weights such as "mini", or `hf://org/repo/file` on the Hugging Face hub.

    The hub's file is fetched once and then comes from its cache; HF_HOME and HF_HUB_OFFLINE are respected. With
    `#sha256=...` behind a path or an address, a file of another hash is refused. A model of transformers (SAM 3) is a
    folder with a config.json: its path, or `hf://org/repo`.

    Raises:
        FileNotFoundError: neither a file nor a shipped name; lists the shipped ones. Or not to be had from the hub.
        WeightsError: a file type that is not read, or another hash.
    """
    name, _, wanted = str(name).partition("#sha256=")
    path = _from_hub(name) if name.startswith("hf://") else Path(name).expanduser()
    shipped = SHIPPED / f"{name}.safetensors"
    if not path.is_file() and shipped.is_file():
        path = shipped
    whole = (path / "config.json").is_file()
    if not path.is_file() and not whole:
        there = ", ".join(repr(p.stem) for p in sorted(SHIPPED.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(
            f"no weights at {name!r}: give a file ({', '.join(SUFFIXES)}), hf://org/repo/file, a folder with a"
            f" config.json of transformers, or one of: {there}"
        )
    if path.suffix not in (*SUFFIXES, ".pkl") and not whole:
        raise WeightsError(f"{path} ends in {path.suffix!r}: weights are read from {', '.join(SUFFIXES)}")
    if wanted and weights_hash(path) != wanted.lower():
        raise WeightsError(f"{path} has sha256 {weights_hash(path)}, not {wanted}: it is another file than was meant")
    return path


def _from_hub(address: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    match = HUB.fullmatch(address)
    if match is None:
        raise WeightsError(f"{address!r} is no address of a file: write hf://org/repo/file, as in hf://a/b/model.pth")
    try:
        if match["file"] is None:
            return Path(snapshot_download(match["repo"], allow_patterns=FOLDER_FILES))
        return Path(hf_hub_download(match["repo"], match["file"]))
    except (OSError, ValueError) as error:  # every error of the hub library is one of these
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{address} is not in the local cache and could not be fetched ({why}): mind HF_HUB_OFFLINE, HF_TOKEN (some"
            " repositories ask you to agree to their licence first) and the network, or give a local file or folder"
        ) from error


def read_weights(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped and not copied.

    trust: also read old pickles that hold more than tensors, which runs whatever code they contain.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        blob = _unpickle(path) if trust else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        cure = "is it complete? If it is an old pickle from a source that you trust: --trust-checkpoint"
        raise WeightsError(f"{path} is not a readable checkpoint ({first_line}): {cure}") from error
    if isinstance(blob, dict) and isinstance(blob.get("clip"), dict):
        return _skysense_clip(blob)
    state = blob.get("model", blob) if isinstance(blob, dict) else None
    if isinstance(state, dict):
        state = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in state.items()}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no table of tensors, neither at its top nor under 'model'")
    if state.keys() != blob.keys():
        logger.info("%s also holds %s: passed over", path, ", ".join(sorted(map(str, blob.keys() - {"model"}))))
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _unpickle(path: Path):
    """Detectron2's .pkl, and .pth with more than tensors in them."""
    logger.warning("%s is read as a pickle because you trust it: any code that it contains runs now", path)
    if path.suffix == ".pkl":
        with open(path, "rb") as file:
            return pickle.load(file, encoding="latin1")
    return torch.load(path, map_location="cpu", weights_only=False)


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


def build_with_weights(cfg: CfgNode, path: Path, half: bool = False, trust: bool = False) -> tuple[nn.Module, Report]:
    """The config's model around the weights of a file: nothing is initialised only to be overwritten, and tensors that
    need no other type stay mapped in the file.

    half: hold the large tensors in bfloat16. trust: see `read_weights`. A folder is read by the model itself.
    """
    if path.is_dir():
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
    assert not empty, f"parts of a tower or a decoder that no checkpoint fills must be made on the CPU: {empty}"
    return model.eval(), report


def _typed(state: dict[str, Tensor], half: bool) -> dict[str, Tensor]:
    """Floating tensors as float32, or the large ones as bfloat16; what is so already is not copied."""

    def typed(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.bfloat16 if half and tensor.numel() > LARGE else torch.float32)

    return {name: tensor if NOT_NEEDED.search(name) else typed(tensor) for name, tensor in state.items()}


def load_weights(
    model: nn.Module, path: Path, allow_missing: Sequence[str] = (), ignore_unexpected: Sequence[str] = ()
) -> Report:
    """Copy a file's tensors into a model.

    What an installed package brings (`tower.installed`) may be missing; anything else that is missing, unexpected or
    of another shape is an error, but for what is missing and fits a pattern of `allow_missing`. Names that fit one of
    `ignore_unexpected` are passed over.
    """
    state = read_weights(path)
    ours = set(model.state_dict())
    left_out = [n for n in state if n not in ours and any(re.search(p, n) for p in ignore_unexpected)]
    report = load_state(model, {n: t for n, t in state.items() if n not in set(left_out)}, path, allow_missing)
    report.passed_over += left_out
    return report


def load_state(
    model: nn.Module, state: dict[str, Tensor], source: str | Path, allow_missing: Sequence[str] = ()
) -> Report:
    """As `load_weights`, for a table of tensors that is at hand; `source` names it in the error. A model on the meta
    device takes the tensors themselves.
    """
    ours, report = model.state_dict(), Report()
    if any(NOT_NEEDED.search(name) or name.startswith(CLIP_PREFIX) for name in state):  # a published checkpoint
        wanted = published_names(ours)
        report.passed_over = [name for name in state if NOT_NEEDED.search(name) and name not in wanted]
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
    taken = {name: state[name] for name in report.loaded}
    model.load_state_dict(taken, strict=False, assign=any(p.is_meta for p in model.parameters()))
    model.text_bank.weights_changed()
    return report


def load_sam_decoder(head: nn.Module, path: Path) -> Report:
    """Start a `SAMMaskHead` from the decoder of a Segment Anything checkpoint, wherever shapes agree.

    Raises:
        WeightsError: no checkpoint of Segment Anything, or none of its tensors has the shape that the head has.
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
            f"{path} has no decoder of Segment Anything that fits SEM_SEG_HEAD ({report}): give one of its checkpoints,"
            " and leave WIDTH, DEPTH, HEADS, MLP and SHARED_TOKENS as they are by default"
        )
    head.load_state_dict({name: theirs[name] for name in report.loaded}, strict=False)
    return report


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors without what installed packages bring."""
    external = _external_prefixes(model)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(external)}


def save_weights(model: nn.Module, path: Path, config: str, dtype: torch.dtype | None = None) -> None:
    """Write safetensors; the config's YAML goes along, so that the file is enough; low-rank updates are
    merged. dtype: of floating tensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in merge_lora(state_to_save(model)).items()}
    if dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    save_file(state, path, metadata={"format": "pt", "config": config})


def weights_hash(path: Path) -> str:
    """SHA-256 of a file, as results carry it; of a folder, that of the names and hashes of its weights and configs."""
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".safetensors", ".json"))
        lines = "".join(f"{f.name} {weights_hash(f)}\n" for f in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(2**20), b""):
        digest.update(block)
    return digest.hexdigest()


def _external_prefixes(model: nn.Module) -> tuple[str, ...]:
    head = getattr(getattr(model, "sem_seg_head", None), "installed", ())
    prefixes = [f"tower.{prefix}" for prefix in model.tower.installed] + [f"sem_seg_head.{prefix}" for prefix in head]
    return (*prefixes, *getattr(model, "external", ()))
