"""Masks as run lengths, polygons and boxes. H W pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask


def rle_of(mask: np.ndarray) -> dict:
    """bool (H,W) -> COCO's compressed run lengths, ready for JSON."""
    found = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in found["size"]], "counts": found["counts"].decode()}


def rle_mask(counts: str | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths, compressed or not -> bool (H,W).

    Not by pycocotools: where runs end too early its masks end in whatever was in memory.

    Raises:
        ValueError: run lengths that do not make a mask of this size.
    """
    runs = _runs(counts) if isinstance(counts, str) else list(counts)
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(runs)} pixels are no mask of {size[1]} x {size[0]}")
    return (np.arange(len(runs)) % 2).repeat(runs).reshape(size[::-1]).T.astype(bool)


def _runs(counts: str) -> list[int]:
    """Six bits a character: five of a number, lowest first, and whether more follow. From the fourth number on each is
    less the one two before it.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16 > 0) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def polygons_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Flat lists x0, y0, x1, y1, ... in pixels -> bool (H,W)."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(polygons), *size))).astype(bool)
