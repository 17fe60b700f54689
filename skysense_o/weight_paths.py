"""Locate files of weights. Imports no torch, so that a wrong path is answered at once."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SHIPPED = Path(__file__).resolve().parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
HUB = re.compile(r"hf://(?P<repo>[^/]+/[^/]+)/(?P<file>[^#]+)")


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit."""


def find_weights(name: str | Path) -> Path:
    """Locate a file of weights, and download it if it is on the Hugging Face hub.

    Downloads are cached by the hub's library, which respects HF_HOME and HF_HUB_OFFLINE.

    Args:
        name: a path, the name of shipped weights such as "mini", or hf://org/repo/file. `#sha256=...` at the end makes
            another hash an error.

    Returns:
        The path of the local file.

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
    if not path.is_file():
        known = ", ".join(repr(p.stem) for p in sorted(SHIPPED.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(
            f"no weights at {name!r}: give a file ({', '.join(SUFFIXES)}), hf://org/repo/file, or one of: {known}"
        )
    if path.suffix not in (*SUFFIXES, ".pkl"):
        raise WeightsError(f"{path} ends in {path.suffix!r}: weights are read from {', '.join(SUFFIXES)}")
    if sha256 and weights_hash(path) != sha256.lower():
        raise WeightsError(f"{path} has sha256 {weights_hash(path)}, not {sha256}: get the right file")
    return path


def _from_hub(address: str) -> Path:
    from huggingface_hub import hf_hub_download

    match = HUB.fullmatch(address)
    if match is None:
        raise WeightsError(
            f"{address!r} is not the address of a file: write hf://org/repo/file, as in hf://a/b/model.pth"
        )
    try:
        return Path(hf_hub_download(match["repo"], match["file"]))
    except (OSError, ValueError) as error:  # every error of the hub library is one of these
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{address} is not in the local cache and could not be downloaded ({why}): check HF_HUB_OFFLINE, HF_TOKEN"
            " and the network, or give a local file"
        ) from error


def weights_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(2**20), b""):
        digest.update(block)
    return digest.hexdigest()
