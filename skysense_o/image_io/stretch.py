"""Convert values of more than 8 bits to 0..255 with one linear stretch per file, between two percentiles of its pixels.

Shape letters: H W pixels, C bands.
"""

from __future__ import annotations

import numpy as np

STRETCH_PERCENTILES = (2.0, 98.0)
"""The percentiles that become 0 and 255."""
SAMPLE_SIDE = 1024
"""Longest side, in pixels, of the reduced image from which the percentiles are computed."""
STRIP_BYTES = 16 * 2**20
"""Approximate size of a strip of decoded rows, in bytes."""


def sample_shape(size: tuple[int, int]) -> tuple[int, int]:
    """The size (h,w) of the reduced image from which the percentiles of an image of size (H,W) are computed."""
    return tuple(max(1, min(n, round(n * SAMPLE_SIDE / max(*size, SAMPLE_SIDE)))) for n in size)


def sample_indices(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of the reduced image, chosen as GDAL's nearest-neighbour resampling does."""
    return tuple(((np.arange(n) + 0.5) * (full / n)).astype(int) for n, full in zip(sample_shape(size), size))


def stretch_of(values: np.ndarray) -> tuple[float, float]:
    """Compute the stretch: the value that becomes 0 and the value that becomes 255.

    Args:
        values: an array of any shape with at least one value; all values are finite.

    >>> stretch_of(np.arange(101))
    (2.0, 98.0)
    """
    low, high = np.percentile(values.astype(np.float64), STRETCH_PERCENTILES)
    return float(low), float(high)


def stretched(values: np.ndarray, stretch: tuple[float, float]) -> np.ndarray:
    """Apply a stretch; returns uint8 of the same shape. NaN and minus infinity become 0, infinity becomes 255."""
    low, high = stretch
    if values.dtype in (np.uint8, np.int8, np.uint16, np.int16) and values.size > 2**16:
        first = np.iinfo(values.dtype).min
        all_values = np.arange(first, np.iinfo(values.dtype).max + 1, dtype=np.int32)
        return stretched(all_values.astype(np.float32), stretch)[values.astype(np.int32) - first]
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.nan_to_num(values.astype(np.float32, copy=False), nan=low, posinf=high, neginf=low)
        return np.clip((values - low) * (255.0 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


def strips(height: int, bytes_per_row: int, step: int = 1) -> list[range]:
    """Divide rows into ranges of about STRIP_BYTES, each a multiple of `step` rows."""
    rows = max(1, STRIP_BYTES // max(1, bytes_per_row) // step) * step
    return [range(r, min(r + rows, height)) for r in range(0, height, rows)]
