"""Endless training batches in which a sample is a function of seed and sample number, whatever loads it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from skysense_o.sample import Sample


class NumberedSamples(Dataset):
    """Sample number n: a record by a fresh shuffle each epoch, augmented with a generator seeded by (seed, n)."""

    def __init__(self, records: list[dict], mapper: Callable[[dict], Sample], seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __getitem__(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self.records))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
        words = np.random.SeedSequence((self.seed, epoch, place)).generate_state(2)
        random.seed(int(words[0]))
        np.random.seed(words[1])
        return self.mapper(self.records[order[place]])


class Numbers(Sampler[int]):
    """Sample numbers for this process: batches of the total size are dealt out in turn, from `start` on."""

    def __init__(self, start: int) -> None:
        self.start, self.rank, self.step = start, comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        number = self.start + self.rank
        while True:
            yield number
            number += self.step


def training_loader(
    records: list[dict], mapper: Callable[[dict], Sample], *, batch: int, start: int, seed: int, workers: int
) -> DataLoader:
    """Lists of `batch` samples for this process, beginning with sample number `start` of the whole run."""
    return DataLoader(
        NumberedSamples(records, mapper, seed),
        batch_size=batch,
        sampler=Numbers(start),
        num_workers=workers,
        collate_fn=list,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),  # its own: starting it must draw nothing from the model's noise
    )
