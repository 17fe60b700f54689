"""One vector a tile, kept in files of some hundred, so that a killed run goes on where it was. Alphabet: N tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from skysense_o.data_engine.work_folder import whole

A_FILE = 512
"""Vectors a file."""


class Vectors:
    """Name -> vector, on disk. What is asked for and not there yet is computed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("[0-9]*.npz")):
            with np.load(path) as file:
                self.known.update(zip(file["names"].tolist(), file["vectors"]))
        self.files = len(list(folder.glob("[0-9]*.npz")))

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self.known]

    def add(self, pairs: Iterator[tuple[str, np.ndarray]]) -> None:
        """Names and their vectors, all of one length, written every `A_FILE`."""
        batch: dict[str, np.ndarray] = {}
        for name, vector in pairs:
            batch[name] = vector
            if len(batch) == A_FILE:
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
        """(N,...) in this order."""
        return np.stack([self.known[name] for name in names])
