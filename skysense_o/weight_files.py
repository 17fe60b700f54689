"""Find and read files of weights. Reading never executes code from a file unless `trust=True`."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skysense_o.published import CLIP_PREFIX

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).resolve().parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
HUB = re.compile(r"hf://(?P<repo>[^/]+/[^/]+)(?:/(?P<file>[^#]+))?")
FOLDER_FILES = ("*.json", "*.txt", "*.safetensors")
"""What is downloaded of a model that is a whole repository: configs, tokenizer, weights."""


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit."""


def find_weights(name: str | Path) -> Path:
    """Locate a file of weights, and download it if it is on the Hugging Face hub.

    Downloads are cached by the hub's library, which respects HF_HOME and HF_HUB_OFFLINE.

    Args:
        name: a path, the name of shipped weights such as "mini", or hf://org/repo/file. `#sha256=...` at the end makes
            another hash an error. A model of transformers (SAM 3) is a folder with a config.json, or hf://org/repo.

    Returns:
        The path of the local file or folder.

    Raises:
        FileNotFoundError: no such file or shipped weights (the message lists them), or the download failed.
        WeightsError: a file type that cannot be read, or another hash.

    >>> find_weights("mini").name
    'mini.safetensors'
    """
    name, _, sha256 = str(name).partition("#sha256=")
    path = _from_hub(name) if name.startswith("hf://") else Path(name).expanduser()
    shipped = SHIPPED / f"{name}.safetensors"
    if not path.is_file() and shipped.is_file():
        path = shipped
    is_model_folder = (path / "config.json").is_file()
    if not path.is_file() and not is_model_folder:
        known = ", ".join(repr(p.stem) for p in sorted(SHIPPED.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(
            f"no weights at {name!r}: give a file ({', '.join(SUFFIXES)}), hf://org/repo/file, a folder with a"
            f" config.json of transformers, or one of: {known}"
        )
    if path.suffix not in (*SUFFIXES, ".pkl") and not is_model_folder:
        raise WeightsError(f"{path} ends in {path.suffix!r}: weights are read from {', '.join(SUFFIXES)}")
    if sha256 and weights_hash(path) != sha256.lower():
        raise WeightsError(f"{path} has sha256 {weights_hash(path)}, not {sha256}: get the right file")
    return path


def _from_hub(address: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    match = HUB.fullmatch(address)
    if match is None:
        raise WeightsError(
            f"{address!r} is not the address of a file: write hf://org/repo/file, as in hf://a/b/model.pth"
        )
    try:
        if match["file"] is None:
            return Path(snapshot_download(match["repo"], allow_patterns=FOLDER_FILES))
        return Path(hf_hub_download(match["repo"], match["file"]))
    except (OSError, ValueError) as error:  # every error of the hub library is one of these
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{address} is not in the local cache and could not be downloaded ({why}): check HF_HUB_OFFLINE, HF_TOKEN"
            " (some repositories ask you to accept their licence first) and the network, or give a local file or folder"
        ) from error


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


def weights_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; of a folder, the hash over the names and hashes of its weights and configs."""
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
