"""Locate weights files. Imports no torch, so that a wrong path is reported at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).resolve().parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
SHARDED = ".sharded"
"""Ending of the folders that a training with SOLVER.SHARD saves; see sharded_files.py."""
HUB = re.compile(r"hf://(?P<repo>[^/]+/[^/]+)(?:/(?P<file>[^#]+))?")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_LIBRARY = "skysense_o"
"""Name in a config.json that `Predictor.save_pretrained` wrote; it distinguishes the file from one of transformers."""
HUB_WEIGHTS = "model.safetensors"
FOLDER_FILES = ("*.json", "*.txt", "*.safetensors")
"""Files to download for a model that is a whole repository: configs, tokenizer, weights."""


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit."""


def find_weights(name: str | Path, **download: Any) -> Path:
    """Locate a weights file, and download it if it is on the Hugging Face hub.

    Downloads are cached by the hub's library, which respects HF_HOME and HF_HUB_OFFLINE.

    Args:
        name: a path, the name of shipped weights such as "mini", or hf://org/repo/file. A file with another hash than
            that of `#sha256=...` at the end of the name is an error. The name may also be a folder that
            `Predictor.save_pretrained` wrote, or org/repo for such a folder on the hub; a `.sharded` folder of a
            training; and for a model of transformers (SAM 3) a folder with a config.json, or hf://org/repo.
        download: revision, cache_dir, token, ...; see huggingface_hub.hf_hub_download.

    Returns:
        The path of the local file or folder.

    Raises:
        FileNotFoundError: the file does not exist, no shipped weights have this name, or the download failed.
        WeightsError: files of this type cannot be read, or the file has another hash.

    >>> find_weights("mini").name
    'mini.safetensors'
    """
    name, _, sha256 = str(name).partition("#sha256=")
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise WeightsError(f"{name}: #sha256={sha256} does not have 64 hexadecimal digits: give the whole SHA-256")
    path = _from_hub(name, download) if name.startswith("hf://") else Path(os.path.expanduser(name))
    if HUB_NAME.fullmatch(name) and not path.exists() and path.suffix not in SUFFIXES:
        path = _from_hub(f"hf://{name}", download)
    shipped = SHIPPED / f"{name}.safetensors"
    if not path.is_file() and shipped.is_file():
        path = shipped
    is_model_folder = (path / "config.json").is_file() or is_sharded(path)
    if is_model_folder and not is_sharded(path) and _is_ours(path / "config.json"):
        path, is_model_folder = path / HUB_WEIGHTS, False
    if not path.is_file() and not is_model_folder:
        known = ", ".join(repr(p.stem) for p in sorted(SHIPPED.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(
            f"no weights at {name!r}: give a file ({', '.join(SUFFIXES)}), hf://org/repo/file, org/repo, a folder with"
            f" a config.json, or one of: {known}"
        )
    if path.suffix not in (*SUFFIXES, ".pkl") and not is_model_folder:
        raise WeightsError(f"{path} ends in {path.suffix!r}: weights are read from {', '.join(SUFFIXES)}")
    if sha256 and weights_hash(path) != sha256.lower():
        raise WeightsError(f"{path} has sha256 {weights_hash(path)}, not {sha256}: download the right file")
    return path


def is_sharded(path: Path) -> bool:
    """Whether a path is a checkpoint that several processes wrote."""
    return path.suffix == SHARDED and path.is_dir()


def _is_ours(config: Path) -> bool:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("library_name") == HUB_LIBRARY
    except (ValueError, AttributeError):  # reading the folder will report what is wrong
        return False


def _from_hub(address: str, download: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    match = HUB.fullmatch(address)
    if match is None:
        raise WeightsError(
            f"{address!r} is not the address of a file: write hf://org/repo/file, as in hf://a/b/model.pth"
        )
    logger = logging.getLogger("huggingface_hub.utils._http")

    def quiet(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logger.addFilter(quiet)  # each of five retries would be reported twice; the error below says what counts
    try:
        if match["file"] is None:
            return Path(snapshot_download(match["repo"], allow_patterns=FOLDER_FILES, **download))
        return Path(hf_hub_download(match["repo"], match["file"], **download))
    except (OSError, ValueError) as error:  # all errors of the hub library are of these types
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{address} is not in the local cache and could not be downloaded ({why}): check HF_HUB_OFFLINE, HF_TOKEN"
            " (some repositories ask you to accept their licence first) and the network, or give a local file or folder"
        ) from error
    finally:
        logger.removeFilter(quiet)


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
