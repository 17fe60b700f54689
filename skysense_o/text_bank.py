"""The cache of text embeddings.

Shape letters: B images, T phrases, P templates, D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from skysense_o.vocabulary import Vocabulary
from skysense_o.whole_files import whole

if TYPE_CHECKING:
    from skysense_o.modeling.tower import Tower

ENCODE_BATCH = 256
ENCODING = Lock()
"""Lock that is held while strings are encoded, so that of several windows in parallel only the first encodes them."""


class TextBank:
    """Cache of text embeddings: each string is encoded once per set of text tower weights.

    A text tower that is being trained is run on every call and nothing is cached. Code that loads or changes weights
    must call `weights_changed()`; the embeddings of the old weights are then dropped.

    >>> class Tower:  # any text tower
    ...     dim, pixel_mean = 2, torch.zeros(1)
    ...     def text_parameters(self): return [torch.ones(1)]
    ...     def encode_text(self, strings): return torch.tensor([[1.0, 0.0]] * len(strings))
    >>> text, valid = TextBank()(Tower(), [Vocabulary.parse("building|house,road")], ["a photo of {}"])
    >>> tuple(text.shape), valid.tolist()
    ((1, 3, 1, 2), [[True, True, True]])
    """

    def __init__(self) -> None:
        self._vectors: dict[tuple[str, str], Tensor] = {}
        self._single: dict[tuple[str, str], Tensor] = {}  # the cache in training, see `_encode_singly`
        self._fingerprint: str | None = None

    def weights_changed(self) -> None:
        """Call this when the text tower may have new weights; the weights are then hashed before the next use."""
        self._fingerprint = None

    def __call__(
        self, tower: Tower, vocabularies: Sequence[Vocabulary], templates: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Encode the vocabularies of a batch, padded to the number of phrases of the longest vocabulary.

        Args:
            tower: the text tower.
            vocabularies: one per image.
            templates: P format strings with one "{}".

        Returns:
            text (B,T,P,D) unit vectors, zero where padded; valid (B,T) bool, False where padded.
        """
        flat = [[p for words in v.phrases for p in words] for v in vocabularies]
        most = max(len(phrases) for phrases in flat)
        examples = [v.examples for v in vocabularies]
        words = dict.fromkeys(p for phrases, own in zip(flat, examples) for p in phrases if p not in own)
        strings = list(dict.fromkeys(template.format(p) for p in words for template in templates))
        with ENCODING:
            table = self._table(tower, strings) if strings else {}
        some = next(iter(table.values()), tower.pixel_mean)
        text = some.new_zeros((len(flat), most, len(templates), tower.dim))
        valid = torch.zeros((len(flat), most), dtype=torch.bool, device=some.device)
        for b, (phrases, own) in enumerate(zip(flat, examples)):
            vectors = [
                own[p].to(text) if p in own else table[template.format(p)] for p in phrases for template in templates
            ]
            text[b, : len(phrases)] = torch.stack(vectors).view(len(phrases), len(templates), -1)
            valid[b, : len(phrases)] = True
        return text, valid

    def _table(self, tower: Tower, strings: list[str]) -> dict[str, Tensor]:
        if torch.is_grad_enabled() and any(p.requires_grad for p in tower.text_parameters()):
            return dict(zip(strings, tower.encode_text(strings)))
        key = self.weights_of(tower)
        if torch.is_grad_enabled():
            return self._encode_singly(tower, key, strings)
        device = tower.pixel_mean.device
        # Strings of similar length in a batch need less padding.
        missing = sorted((s for s in strings if (key, s) not in self._vectors), key=len)
        with torch.no_grad():
            for first in range(0, len(missing), ENCODE_BATCH):
                batch = missing[first : first + ENCODE_BATCH]
                for string, vector in zip(batch, tower.encode_text(batch)):
                    self._vectors[key, string] = vector
        return {s: self._vectors[key, s].to(device) for s in strings}

    def _encode_singly(self, tower: Tower, key: str, strings: list[str]) -> dict[str, Tensor]:
        """Encode each string in a batch of one, for training.

        The rounding errors of an embedding depend on the rest of its batch. A resumed run sees the words in another
        order, so with larger batches the weights of that run would differ from those of an uninterrupted run.
        """
        for string in strings:
            if (key, string) not in self._single:
                with torch.no_grad():
                    self._single[key, string] = tower.encode_text([string])[0]
        return {s: self._single[key, s].to(tower.pixel_mean.device) for s in strings}

    def weights_of(self, tower: Tower) -> str:
        """A hash of the weights of the text tower."""
        if self._fingerprint is None:
            digest = xxhash.xxh3_128()  # SHA-256 of gigabytes of weights would take seconds
            for parameter in tower.text_parameters():
                # Tensor.numpy() would pin the memory, which FSDP2 has to free.
                digest.update(np.from_dlpack(parameter.detach().cpu().reshape(-1).view(torch.uint8)))
            self._fingerprint = digest.hexdigest()
            for table in (self._vectors, self._single):
                for key in [key for key in table if key[0] != self._fingerprint]:
                    del table[key]
        return self._fingerprint

    def export(self, path: str | Path) -> None:
        """Write all cached embeddings to a safetensors file, for another process to `load`."""
        keys = list(self._vectors)
        vectors = torch.stack([self._vectors[key] for key in keys]) if keys else torch.zeros(0, 0)
        with whole(Path(path)) as part:
            save_file({"vectors": vectors.cpu().contiguous()}, part, metadata={"keys": json.dumps(keys)})

    def load(self, path: str | Path) -> None:
        """Add the embeddings of a file written by `export`, for use with a tower that has the same weights."""
        with safe_open(str(path), "pt") as file:
            keys, vectors = json.loads(file.metadata()["keys"]), file.get_tensor("vectors")
        self._vectors.update((tuple(key), vector) for key, vector in zip(keys, vectors))
