"""Hashes of images, by which copies are found."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

ALIKE_BITS = 8
"""Two images whose hashes of 256 bits differ in at most this many bits count as the same."""
HASH_SIDE = 16


def image_hash(image: Image.Image) -> np.ndarray:
    """Difference hash: whether each cell of a 16 x 16 grid is brighter than its right neighbour.

    The hash is robust to resizing and compression. For uniform surfaces it is noise.

    Returns:
        uint8 (32,).
    """
    grey = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1])


def alike(one: Iterable[np.ndarray], two: Iterable[np.ndarray], bits: int = ALIKE_BITS) -> list[tuple[int, int]]:
    """Pairs of indices whose hashes differ in at most `bits` bits."""
    first, second = np.stack(list(one)), np.stack(list(two))
    pairs = []
    chunk = max(1, 2**24 // (len(second) * first.shape[1]))
    for start in range(0, len(first), chunk):
        difference = first[start : start + chunk, None] ^ second[None]
        near = np.bitwise_count(difference).sum(-1, dtype=np.int32) <= bits
        pairs += [(int(i) + start, int(j)) for i, j in np.argwhere(near)]
    return pairs
