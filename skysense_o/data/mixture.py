"""Several data sets in one training: how often each is drawn from, as a function of seed and sample index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from skysense_o.data.loader import NumberedSamples
from skysense_o.sample import Sample

OWN_SEED = 1_000_003  # each set shuffles by a seed of its own


def check_weights(weights: Sequence[int], sets: int) -> None:
    """Raises ValueError: not one whole number from 1 on for each set."""
    if len(weights) != sets or any(int(w) != w or w < 1 for w in weights):
        raise ValueError(
            f"DATASETS.WEIGHTS {tuple(weights)}: one whole number from 1 on for each of the {sets} sets of"
            " DATASETS.TRAIN, or () for by size"
        )


class MixedSamples(Dataset):
    """Rounds of sum(weights) samples, each with exactly weights[s] of set s in a random order; each set goes through
    its own records as `NumberedSamples` does, whatever the others hold.
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
            ValueError: not one whole number from 1 on for each set.
        """
        check_weights(weights, len(records))
        self.weights, self.seed = [int(w) for w in weights], seed
        self.sets = [
            NumberedSamples(some, mapper, seed + OWN_SEED * (s + 1), skip_bad) for s, some in enumerate(records)
        ]

    def locate(self, index: int) -> tuple[int, int]:
        """Sample index -> (set, index within that set)."""
        block, place = divmod(index, sum(self.weights))
        slots = np.repeat(np.arange(len(self.weights)), self.weights)
        order = slots[np.random.default_rng((self.seed, block)).permutation(len(slots))]
        chosen = int(order[place])
        return chosen, block * self.weights[chosen] + int((order[:place] == chosen).sum())

    def __getitem__(self, index: int) -> Sample:
        chosen, own = self.locate(index)
        return self.sets[chosen][own]
