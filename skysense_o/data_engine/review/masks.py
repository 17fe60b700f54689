"""Conversion of masks to and from run lengths (RLE), polygons and boxes. Alphabet: H W pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask


def rle_of(mask: np.ndarray) -> dict:
    """Encode a mask, bool (H,W), as COCO's compressed RLE, in types that JSON can hold."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()}


def rle_mask(counts: str | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Decode COCO's RLE.

    pycocotools is not used, because for runs that end too early it returns uninitialised memory.

    Args:
        counts: compressed text, or a list of run lengths.
        size: (H,W).

    Returns:
        bool (H,W).

    Raises:
        ValueError: the runs do not add up to H x W pixels.
    """
    runs = _runs(counts) if isinstance(counts, str) else list(counts)
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(runs)} pixels do not make a mask of {size[1]} x {size[0]}")
    return (np.arange(len(runs)) % 2).repeat(runs).reshape(size[::-1]).T.astype(bool)


def _runs(counts: str) -> list[int]:
    """Decompress COCO's RLE text.

    Each character holds six bits: five bits of a number, the lowest first, and a flag that more follow. From the fourth
    number on, the difference to the number two before it is stored.
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
    """Rasterise polygons, flat lists x0, y0, x1, y1, ... in pixels -> their union, bool (H,W); size: (H,W)."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(polygons), *size))).astype(bool)
