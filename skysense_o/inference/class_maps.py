"""Clicks and boxes that also use what the model's words say about the image.

The prompt decoder knows where a click is and what the pixels around it look like. The masks of words know what is
there: road, water, building. A first click means the region that looks like the clicked place to both. Each later click
corrects a mistake near it and leaves the rest as it is.

Shape letters: C classes, H W pixels, h w grid of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.box_regions import CLASSES, LONGEST, BoxRegions
from skysense_o.geometry import ImageTransform
from skysense_o.vocabulary import Vocabulary

GRID = 256
"""Longest side of the class maps that are kept, in cells."""
LEAST = 0.02
"""Smallest likeness of two cells, so that its logarithm is finite."""
FAR = 1.5
"""Evidence that a correction needs per tenth of the image's side that a cell is away from the click. Chosen, like the
equal weight of decoder and class maps, on training images of Dubai and validation images of Czech land cover and roofs
(docs/experiments.md, 2026-11-30)."""
SURE = 3.0
"""Logit of the cells under a click, inside a box and of crumbs."""
CRUMB = 4
"""Cells of the largest part that a correction changes as well if it cuts this part off. Smaller than what is kept
around a click."""
KEPT = 4
"""Number of recent prompts whose logits are kept, so that one more click corrects them instead of starting anew."""

Decode = Callable[[Sequence[tuple[float, float, int]], Sequence[float]], Tensor]
"""Clicks (x, y, label) and a box, () without one -> the prompt decoder's mask logits (h,w) over the padded image."""
Prompt = tuple[tuple[float, ...], tuple[tuple[float, float, int], ...]]  # box, () without one; clicks x, y, label


class ClassMaps:
    """Class probabilities of one image for the two lists of classes in `box_regions.CLASSES`."""

    def __init__(self, class_probabilities: Callable[[Vocabulary], Tensor], transform: ImageTransform) -> None:
        """
        Args:
            class_probabilities: vocabulary -> (C,h,w) over the padded image.
            transform: of the image.
        """
        self.size, self.padded = transform.size, transform.padded
        maps = [class_probabilities(Vocabulary.of(classes)) for classes in CLASSES]
        scale = min(1.0, LONGEST / max(self.size))
        size = tuple(max(1, round(side * scale)) for side in self.size)
        labels = [transform.restore_probabilities(found, size)["labels"].cpu().numpy() for found in maps]
        self.box_regions, self.grid = BoxRegions(labels, self.size), tuple(maps[0].shape[1:])
        self.maps = [_shares(found) for found in maps]
        self._recent: dict[Prompt, Tensor] = {}

    @property
    def arrays(self) -> list[np.ndarray | Tensor]:
        """All arrays of this object, to measure the memory that they take."""
        return [*self.box_regions.arrays, *self.maps, *list(self._recent.values())]

    def logits(self, clicks: Sequence[tuple[float, float, int]], box: Sequence[float], decode: Decode) -> Tensor:
        """The mask logits of a prompt. Asks the decoder once per click, but not for clicks of recent prompts.

        Args:
            clicks: x, y in pixels of the image, and 1 for foreground or 0 for background. If there is no box, at least
                one is foreground.
            box: half-open XYXY; () for none.
            decode: of this image; it is not kept, because it refers to the image, which refers to this object.

        Returns:
            (h,w) over the padded image.
        """
        box, clicks = tuple(box), tuple(clicks)
        if not box:  # a mask starts with a foreground click
            first = next(i for i, (*_, label) in enumerate(clicks) if label)
            clicks = (clicks[first], *clicks[:first], *clicks[first + 1 :])
        start = 0 if box else 1
        known = next((n for n in range(len(clicks), start - 1, -1) if (box, clicks[:n]) in self._recent), None)
        if known is None:
            known, found = start, self._first(box, clicks[:start], decode)
        else:
            found = self._recent.pop((box, clicks[:known]))
        self._keep(box, clicks[:known], found)
        for n in range(known + 1, len(clicks) + 1):
            found = self._corrected(found, box, clicks[:n], decode)
            self._keep(box, clicks[:n], found)
        return found

    def _keep(self, box: tuple, clicks: tuple, found: Tensor) -> None:
        self._recent[box, clicks] = found
        while len(self._recent) > KEPT:
            del self._recent[next(iter(self._recent))]

    def _first(self, box: tuple, clicks: tuple, decode: Decode) -> Tensor:
        region = self.box_regions.mask(box) if box else None
        if region is not None:
            below, right = (p - n for p, n in zip(self.padded, self.size))
            mask = F.pad(torch.from_numpy(region).float(), (0, right, 0, below))
            return (F.adaptive_avg_pool2d(mask[None], self.grid)[0].to(self.maps[0].device) * 2 - 1) * SURE
        logits = decode(clicks, box)
        if box:
            return logits
        logits = logits + self._evidence(clicks, (), logits.shape)
        under = self._under(*clicks[0][:2], logits)
        logits[under] = logits[under].clamp(min=SURE)
        return logits

    def _corrected(self, before: Tensor, box: tuple, clicks: tuple, decode: Decode) -> Tensor:
        """Change the connected part around the last click that the evidence says is wrong."""
        *_, (x, y, label) = clicks
        sign = 1 if label else -1
        opposite = [click for click in clicks if click[2] != label]
        evidence = sign * decode(clicks, box) + self._evidence(clicks[-1:], opposite, before.shape)
        evidence -= FAR * self._tenths(x, y, before)
        kept = torch.zeros_like(before, dtype=torch.bool)
        for other in opposite:
            kept[self._under(*other[:2], before)] = True
        under = self._under(x, y, before)
        kept[under], evidence[under] = False, evidence[under].clamp(min=SURE)
        before = sign * before
        wrong = ((before <= 0) & (evidence > 0) & ~kept).cpu().numpy()
        wrong[under] = True
        parts, _ = _parts(wrong)
        part = parts == parts[self._cell(x, y, before.shape)]
        around = cv2.dilate(part.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        # The evidence also replaces the cells around the part, so that the border lies where it crosses 0.
        change = torch.from_numpy(around).to(before.device) & ~kept
        after = torch.where(change, torch.maximum(before, evidence), before)
        left, sizes = _parts((after <= 0).cpu().numpy())
        crumbs = set(left[around]) - set(left[kept.cpu().numpy()]) - {0}
        crumbs = np.isin(left, [i for i in crumbs if sizes[i] <= CRUMB])
        return sign * torch.where(torch.from_numpy(crumbs).to(before.device), SURE, after)

    def _evidence(self, like: Sequence, unlike: Sequence, grid: tuple[int, int]) -> Tensor:
        """(h,w): how much more a cell shows what is under some clicks than what is under others, or than anything else.

        It is the sum over the class maps of log(p / q). p is the product of the cell's class shares and the unit vector
        of those under the click (the largest over the clicks), 0..1. q is the same for the other clicks, or 1 - p
        without other clicks.
        """
        total = 0.0
        for shares in self.maps:
            p = self._likeness(shares, like)
            q = self._likeness(shares, unlike) if unlike else 1 - p
            total = total + (p.clamp(min=LEAST) / q.clamp(min=LEAST)).log()
        return F.interpolate(total[None, None], size=grid, mode="bilinear", align_corners=False)[0, 0]

    def _likeness(self, shares: Tensor, clicks: Sequence) -> Tensor:
        found = []
        for x, y, _ in clicks:
            under = shares[(slice(None), *self._under(x, y, shares[0]))].float().mean((1, 2))
            found.append(torch.einsum("c,chw->hw", under / under.norm().clamp(min=0.1), shares.float()))
        return torch.stack(found).amax(0)

    def _tenths(self, x: float, y: float, grid: Tensor) -> Tensor:
        """(h,w): distance of each cell to a pixel, in tenths of the side of a square as large as the image."""
        rows, columns = (
            (torch.arange(count, device=grid.device) + 0.5) * (side / count) - at
            for count, side, at in zip(grid.shape, self.padded, (y, x))
        )
        return torch.hypot(rows[:, None], columns[None]) * (10 / (self.size[0] * self.size[1]) ** 0.5)

    def _under(self, x: float, y: float, grid: Tensor) -> tuple[slice, slice]:
        """The cell of a pixel and its neighbours, so that bilinear interpolation at the pixel uses these cells only."""
        row, column = self._cell(x, y, grid.shape)
        return slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)

    def _cell(self, x: float, y: float, grid: Sequence[int]) -> tuple[int, int]:
        (height, width), (rows, columns) = self.padded, grid
        return min(rows - 1, int(y * rows / height)), min(columns - 1, int(x * columns / width))


def _parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected parts of a mask (8-connectivity): their numbers (h,w), 0 outside, and the cells of each."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return parts, stats[:, cv2.CC_STAT_AREA]


def _shares(probabilities: Tensor) -> Tensor:
    """Each class's share of the sum of probabilities (C,h,w), on a grid of at most GRID cells a side."""
    scale = min(1.0, GRID / max(probabilities.shape[1:]))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in probabilities.shape[1:])
        probabilities = F.interpolate(probabilities[None], size=size, mode="area")[0]
    return (probabilities / probabilities.sum(0).clamp(min=1e-6)).half()
