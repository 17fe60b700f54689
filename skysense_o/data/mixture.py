"""Train on several data sets with weights. A sample depends only on the seed and its index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from skysense_o.data.loader import NumberedSamples
from skysense_o.sample import Sample

OWN_SEED = 1_000_003  # factor that gives each data set its own seed


def check_weights(weights: Sequence[int], sets: int) -> None:
    """Raise ValueError unless `weights` has one whole number, 1 or more, for each of the `sets` data sets."""
    if len(weights) != sets or any(int(w) != w or w < 1 for w in weights):
        raise ValueError(
            f"DATASETS.WEIGHTS {tuple(weights)}: give one whole number, 1 or more, for each of the {sets} sets of"
            " DATASETS.TRAIN, or () to weight by size"
        )


class MixedSamples(Dataset):
    """Samples of several data sets. Each round of sum(weights) samples has exactly weights[s] samples of data set s, in
    random order.

    Each data set has its own shuffles, see `NumberedSamples`, which do not depend on the other data sets.
    """

    def __init__(
        self,
        records: Sequence[list[dict]],
        weights: Sequence[int],
        mapper: Callable[[dict], Sample],
        seed: int,
        skip_bad: bool = False,
    ) -> None:
        """
        Raises:
            ValueError: see `check_weights`.
        """
        check_weights(weights, len(records))
        self.weights, self.seed = [int(w) for w in weights], seed
        self.sets = [
            NumberedSamples(some, mapper, seed + OWN_SEED * (s + 1), skip_bad) for s, some in enumerate(records)
        ]

    def locate(self, index: int) -> tuple[int, int]:
        """Sample index -> (index of the data set, index of the sample within that data set)."""
        block, position = divmod(index, sum(self.weights))
        slots = np.repeat(np.arange(len(self.weights)), self.weights)
        order = slots[np.random.default_rng((self.seed, block)).permutation(len(slots))]
        chosen = int(order[position])
        return chosen, block * self.weights[chosen] + int((order[:position] == chosen).sum())

    def __getitem__(self, index: int) -> Sample:
        chosen, own = self.locate(index)
        return self.sets[chosen][own]
