"""Metrics of masks against labels that are not masks: boxes and scene classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Masks = Callable[[np.ndarray], np.ndarray]
"""A function that maps an image, uint8 (H,W,3), to the index of the word that each pixel gets, (H,W)."""


@dataclass
class BoxCounts:
    """How well the mask of one word fits the boxes of its class, summed over images."""

    boxes: int = 0  # all boxes
    hit: int = 0  # boxes that count as found, see `hit_share`
    pixels: int = 0  # pixels of the mask in images that have boxes
    inside: int = 0  # pixels of the mask inside a box, in the same images

    @property
    def hit_share(self) -> float:
        """Share of the boxes whose inner half has the word on more than half of its pixels; NaN without boxes."""
        return self.hit / self.boxes if self.boxes else float("nan")

    @property
    def inside_share(self) -> float:
        """Share of the word's pixels, in images with its boxes, that are inside a box; NaN without such pixels."""
        return self.inside / self.pixels if self.pixels else float("nan")


def count_boxes(
    counts: BoxCounts, mask: np.ndarray, boxes: Sequence[Sequence[float]], outlined: np.ndarray | None = None
) -> None:
    """Add one image to `counts`.

    Args:
        mask: bool (H,W), the word's pixels.
        boxes: x0, y0, x1, y1, all of the word's class.
        outlined: bool (H,W), pixels of further objects of the class, which count as inside.
    """
    covered = np.zeros_like(mask) if outlined is None else outlined.copy()
    for x0, y0, x1, y1 in boxes:
        width, height = x1 - x0, y1 - y0
        inner = mask[_span(y0 + height / 4, y1 - height / 4), _span(x0 + width / 4, x1 - width / 4)]
        counts.boxes += 1
        counts.hit += bool(inner.size and inner.mean() > 0.5)
        covered[_span(y0, y1), _span(x0, x1)] = True
    counts.pixels += int(mask.sum())
    counts.inside += int((mask & covered).sum())


def _span(low: float, high: float) -> slice:
    return slice(max(0, round(low)), max(round(low) + 1, round(high)))


def coverage(shares: np.ndarray, kinds: Sequence[str], words: Sequence[str], own: dict[str, tuple[str, ...]]) -> dict:
    """Test whether each word covers at least 1 % of the images of its own scene classes, and less than 0.5 % of others.

    Args:
        shares: (N,C), for each image the share of its pixels that each word gets.
        kinds: scene classes of the N images.
        words: C words.
        own: word -> its own scene classes, whose images should contain it.

    Returns:
        word -> (mean share in images of its own scene classes, mean share in all other images, whether both conditions
        hold).
    """
    found = {}
    for word, these in own.items():
        mine = np.array([kind in these for kind in kinds])
        here, there = shares[mine, words.index(word)].mean(), shares[~mine, words.index(word)].mean()
        found[word] = float(here), float(there), bool(here >= 0.01 and there < 0.005)
    return found
