"""Vectors on disk, one per name, in files of 512 vectors each, so that an interrupted run can resume.

Shape letters: N names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from skysense_o.data_engine.work_folder import whole

PER_FILE = 512
"""Number of vectors per file."""


class Vectors:
    """A map from names to vectors, stored in a folder. `known` holds all vectors in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("[0-9]*.npz")):
            with np.load(path) as file:
                self.known.update(zip(file["names"].tolist(), file["vectors"]))
        self.files = len(list(folder.glob("[0-9]*.npz")))

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names among `names` for which the store has no vector."""
        return [name for name in names if name not in self.known]

    def add(self, pairs: Iterator[tuple[str, np.ndarray]]) -> None:
        """Store (name, vector) pairs; all vectors have one shape. A file is written after every `PER_FILE` pairs."""
        batch: dict[str, np.ndarray] = {}
        for name, vector in pairs:
            batch[name] = vector
            if len(batch) == PER_FILE:
                self._write(batch)
                batch = {}
        if batch:
            self._write(batch)

    def _write(self, batch: dict[str, np.ndarray]) -> None:
        with whole(self.folder / f"{self.files:06d}.npz") as part, open(part, "wb") as file:
            np.savez(file, names=np.array(list(batch)), vectors=np.stack(list(batch.values())))
        self.files += 1
        self.known.update(batch)

    def of(self, names: Sequence[str]) -> np.ndarray:
        """The vectors of these names, stacked in this order: (N,...)."""
        return np.stack([self.known[name] for name in names])
