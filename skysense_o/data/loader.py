"""Endless training batches in which a sample is a function of seed and sample number, whatever loads it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from skysense_o.data.labels import BadData
from skysense_o.sample import Sample

logger = logging.getLogger(__name__)
SKIPS_IN_A_ROW = 50


class NumberedSamples(Dataset):
    """Sample number n: a record by a fresh shuffle each epoch, augmented with a generator seeded by (seed, n).

    With `skip_bad` a record that cannot be used gives way to the next of the shuffle, seeded by its own place, so
    that the rule above still holds; the sample says so under "skipped".
    """

    def __init__(
        self, records: list[dict], mapper: Callable[[dict], Sample], seed: int, skip_bad: bool = False
    ) -> None:
        self.records, self.mapper, self.seed, self.skip_bad = records, mapper, seed, skip_bad

    def __getitem__(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self.records))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
        skipped: list[str] = []
        for step in range(SKIPS_IN_A_ROW):
            now = (place + step) % len(self.records)
            words = np.random.SeedSequence((self.seed, epoch, now)).generate_state(2)
            random.seed(int(words[0]))
            np.random.seed(words[1])
            try:
                sample = self.mapper(self.records[order[now]])
            except BadData as error:
                if not self.skip_bad:
                    raise
                skipped.append(str(error))
                continue
            return {**sample, "skipped": skipped} if skipped else sample
        raise BadData(f"{SKIPS_IN_A_ROW} records in a row cannot be used, the last because: {skipped[-1]}")


class Numbers(Sampler[int]):
    """Sample numbers for this process: batches of the total size are dealt out in turn, from `start` on."""

    def __init__(self, start: int) -> None:
        self.start, self.rank, self.step = start, comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        number = self.start + self.rank
        while True:
            yield number
            number += self.step


class Batches:
    """A DataLoader's batches; what was passed over is counted here, in the main process, and logged once a file."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.skipped: dict[str, None] = {}  # the messages, in the order they came

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self.loader:
            for sample in batch:
                for message in sample.pop("skipped", ()):
                    if message not in self.skipped:
                        self.skipped[message] = None
                        logger.warning("passed over, the %d. so far: %s", len(self.skipped), message)
            yield batch


def one_thread(worker: int) -> None:
    """Workers are the parallel part: OpenCV's own threads in each of them only get into each other's way."""
    cv2.setNumThreads(0)


def training_loader(
    records: list[dict],
    mapper: Callable[[dict], Sample],
    *,
    batch: int,
    start: int,
    seed: int,
    workers: int,
    skip_bad: bool = False,
    samples: Dataset | None = None,
) -> Batches:
    """Lists of `batch` samples for this process, beginning with sample number `start` of the whole run.

    samples: in place of `NumberedSamples` of the records.
    """
    own = torch.Generator().manual_seed(seed)  # starting a loader must draw nothing from the model's noise
    return Batches(
        DataLoader(
            NumberedSamples(records, mapper, seed, skip_bad) if samples is None else samples,
            batch_size=batch,
            sampler=Numbers(start),
            num_workers=workers,
            collate_fn=list,
            persistent_workers=workers > 0,
            worker_init_fn=one_thread,
            generator=own,
        )
    )
