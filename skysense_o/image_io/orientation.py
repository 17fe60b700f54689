"""EXIF orientation: how a stored image is turned or mirrored so that it is upright. Alphabet: H W pixels."""

from __future__ import annotations

import numpy as np

UPRIGHT = 1


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """A view of a stored array (H,W,...) as it is to be seen. orientation: 1 to 8 as in EXIF; others mean upright."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def as_stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `upright`, a view as well: what is written into it lands where it is to be seen."""
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H,W) as stored -> (H,W) as it is to be seen."""
    return size[::-1] if orientation in (5, 6, 7, 8) else size
