"""Conversion of masks to and from run lengths (RLE), polygons and boxes.

Shape letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from skysense_o.text_files import checked

FARTHEST = 100_000
"""Largest absolute coordinate of a polygon, in pixels."""
MOST_BITS = 60
"""Largest number of bits of a run length; no image has longer runs."""


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
        ValueError: the counts are not run lengths, or do not add up to H x W pixels.
    """
    if isinstance(counts, str):
        runs = _runs(counts)
    else:
        runs = [checked(run, int, "a run length") for run in checked(counts, list, "the run lengths")]
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(runs)} pixels do not make a mask of {size[1]} x {size[0]}")
    return (np.arange(len(runs)) % 2).repeat(runs).reshape(size[::-1]).T.astype(bool)


def _runs(counts: str) -> list[int]:
    """Decompress COCO's RLE text.

    Each character holds six bits: five bits of a number, beginning with the lowest, and a flag whether more bits of the
    number follow. From the fourth number on, each stored value is the difference to the number two places before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > MOST_BITS:
            raise ValueError(f"run lengths hold {character!r}, which is not COCO's compressed form")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16 > 0) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def polygons_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Rasterise polygons.

    Coordinates are checked first, because pycocotools crashes the process if they are not finite or are huge.

    Args:
        polygons: flat lists x0, y0, x1, y1, ... in pixels, or lists of points [x, y].
        size: (H,W).

    Returns:
        The union of the polygons, bool (H,W).

    Raises:
        ValueError: there is no polygon, or a polygon has fewer than three points, an odd number of coordinates, or
            coordinates that are not numbers, not finite or beyond FARTHEST.
    """
    flat = [_flat_polygon(polygon) for polygon in checked(polygons, list, "the segmentation")]
    if not flat:
        raise ValueError("the segmentation has no polygon")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *size))).astype(bool)


def _flat_polygon(polygon) -> list[float]:
    numbers = []
    for value in checked(polygon, list, "a polygon"):
        point = value if isinstance(value, list) else [value]
        if isinstance(value, list) and len(value) != 2:
            raise ValueError(f"a point of a polygon has {len(value)} coordinates: expected 2")
        numbers += [float(checked(number, float, "a coordinate of a polygon")) for number in point]
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"a polygon has {len(numbers)} numbers: expected 6 or more, x and y in turn")
    if max(map(abs, numbers)) > FARTHEST:
        raise ValueError(f"a polygon reaches {max(map(abs, numbers)):g} pixels: expected at most {FARTHEST:,}")
    return numbers
