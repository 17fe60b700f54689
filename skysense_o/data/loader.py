"""Endless training batches. A sample depends only on the seed and its index, not on the process that loads it."""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from skysense_o.data.labels import BadData
from skysense_o.sample import Sample

logger = logging.getLogger(__name__)
SKIPS_IN_A_ROW = 50
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PROCESS_GROUPS = hasattr(os, "setpgid")  # not on Windows


class NumberedSamples(Dataset):
    """Samples by their index, counted from the start of the training. Each epoch has a new shuffle of the records.

    The augmentation of a sample is seeded by (seed, epoch, position in the shuffle). With `skip_bad`, a record that
    cannot be used is replaced by the next one of the shuffle, and "skipped" lists the reasons. The replacement is
    seeded by its own position, so a sample still depends on the seed and its index alone.
    """

    def __init__(
        self, records: list[dict], mapper: Callable[[dict], Sample], seed: int, skip_bad: bool = False
    ) -> None:
        self.records, self.mapper, self.seed, self.skip_bad = records, mapper, seed, skip_bad
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def order(self, epoch: int) -> np.ndarray:
        """The shuffle of an epoch, int64 (len(records),), cached for one epoch: 5 million records take 0.25 s."""
        if epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
            self._epoch = epoch
        return self._order

    def __getitem__(self, index: int) -> Sample:
        epoch, first = divmod(index, len(self.records))
        order, skipped = self.order(epoch), []
        for step in range(SKIPS_IN_A_ROW):
            position = (first + step) % len(self.records)
            seeds = np.random.SeedSequence((self.seed, epoch, position)).generate_state(2)
            random.seed(int(seeds[0]))
            np.random.seed(seeds[1])
            try:
                sample = self.mapper(self.records[order[position]])
            except BadData as error:
                if not self.skip_bad:
                    raise
                skipped.append(str(error))
                continue
            return {**sample, "skipped": skipped} if skipped else sample
        raise BadData(f"{SKIPS_IN_A_ROW} records in a row cannot be used; the last one: {skipped[-1]}")


class SampleIndices(Sampler[int]):
    """Sample indices of this process, from `start` on: process r of n gets start + r, start + r + n, ..."""

    def __init__(self, start: int) -> None:
        self.start, self.rank, self.step = start, comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        index = self.start + self.rank
        while True:
            yield index
            index += self.step


class Batches:
    """Batches of a DataLoader. Each skipped file is logged once, in the main process."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.skipped: dict[str, None] = {}  # messages, in the order of their arrival

    def __iter__(self) -> Iterator[list[Sample]]:
        with held_signals():  # a worker unblocks signals itself, after it has left this process group
            batches = iter(self.loader)
        for batch in batches:
            for sample in batch:
                for message in sample.pop("skipped", ()):
                    if message not in self.skipped:
                        self.skipped[message] = None
                        logger.warning("skipped, %d so far: %s", len(self.skipped), message)
            yield batch


@contextmanager
def held_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM while the `with` block runs, also in processes that the block starts."""
    if not PROCESS_GROUPS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker: int) -> None:
    """Prepare a loader process: one thread, and a process group of its own.

    OpenCV's threads in several workers slow each other down. A signal to the training's process group (Ctrl-C in a
    terminal) must not reach the workers: the main process still needs them to finish its step. It then saves a
    checkpoint and ends the workers, with SIGTERM if they do not end by themselves.
    """
    cv2.setNumThreads(0)
    if not PROCESS_GROUPS:
        return
    os.setpgid(0, 0)
    while signal.sigpending() & set(SIGNALS):  # signals sent to the old process group since the fork
        signal.sigwait(SIGNALS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


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
    """Load the batches of a training.

    Args:
        records: the records from which `mapper` makes samples.
        batch: samples per batch of this process.
        start: index of the first sample, counted over all processes.
        seed: seed of shuffles and augmentations.
        workers: loader processes; 0: load in this process.
        skip_bad: skip records that cannot be used, instead of stopping.
        samples: a dataset to use in place of `NumberedSamples(records)`.

    Returns:
        An endless iterable over lists of samples.
    """
    own = torch.Generator().manual_seed(seed)  # so that the loader does not draw from the model's random generator
    return Batches(
        DataLoader(
            NumberedSamples(records, mapper, seed, skip_bad) if samples is None else samples,
            batch_size=batch,
            sampler=SampleIndices(start),
            num_workers=workers,
            collate_fn=list,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            generator=own,
        )
    )
