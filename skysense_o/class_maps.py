"""Clicks and boxes that also use what the model's words say about the image.

The prompt decoder knows where a click is and what the pixels around it look like. The masks of words know what is
there: road, water, building. A first click means the region that looks like the clicked place to both. A box means a
region of the label maps. A small network corrects the mask after each click, the first one included (`MaskCorrector`).

Shape letters: N clicks, C classes, H W pixels, h w grid of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.box_regions import CLASSES, LONGEST, BoxRegions
from skysense_o.clicks import parts_at
from skysense_o.geometry import ImageTransform
from skysense_o.vocabulary import Vocabulary

GRID = 256
"""Longest side of the class maps that are kept, in cells."""
LEAST = 0.02
"""Smallest likeness of two cells, so that its logarithm is finite."""
SURE = 3.0
"""Logit of the cells under a click and inside a box, and negative of parts that were not clicked."""
WINDOW = 320
"""Side of the square in which a mask is corrected, in cells of the mask grid, or for a large mask in larger cells."""
MARGIN = 1.25
"""Side of this square, relative to the mask, its box and the last click."""
REMEMBERED = 32
"""Number of the latest clicks that a correction takes into account."""
KEPT = 4
"""Number of recent prompts whose logits are kept, so that one more click corrects them instead of starting anew."""

Decode = Callable[[Sequence[tuple[float, float, int]], Sequence[float]], Tensor]
"""Clicks (x, y, label) and a box, () without one -> the prompt decoder's mask logits (h,w) over the padded image."""
Correct = Callable[[tuple[slice, slice], Sequence[Tensor], Tensor, Tensor, Tensor, Tensor], Tensor]
"""A window of the grid; class maps and mask logits in it, whose size may be reduced; points, labels and boxes in the
reduced cells, with a batch dimension of 1 as in `MaskCorrector.forward` -> corrected logits (1,h,w)."""
Prompt = tuple[tuple[float, ...], tuple[tuple[float, float, int], ...]]  # box, () without one; clicks x, y, label


class ClassMaps:
    """Class probabilities of one image for the two lists of classes in `box_regions.CLASSES`."""

    def __init__(self, class_probabilities: Callable[[Vocabulary], Tensor], transform: ImageTransform) -> None:
        """
        Args:
            class_probabilities: vocabulary -> (C,h,w) over the padded image.
            transform: of the image.
        """
        self.transform = transform
        maps = [class_probabilities(Vocabulary.of(classes)) for classes in CLASSES]
        scale = min(1.0, LONGEST / max(transform.size))
        size = tuple(max(1, round(side * scale)) for side in transform.size)
        labels = [transform.restore_probabilities(found, size)["labels"].cpu().numpy() for found in maps]
        self.box_regions, self.grid = BoxRegions(labels, transform.size), tuple(maps[0].shape[1:])
        self.maps = [_shares(found) for found in maps]
        self._recent: dict[Prompt, Tensor] = {}

    @property
    def arrays(self) -> list[np.ndarray | Tensor]:
        """All arrays of this object, to measure the memory that they take."""
        return [*self.box_regions.arrays, *self.maps, *list(self._recent.values())]

    def logits(
        self, clicks: Sequence[tuple[float, float, int]], box: Sequence[float], decode: Decode, correct: Correct
    ) -> Tensor:
        """The mask logits of a prompt with clicks. Each click is a correction, except for those of recent prompts.

        The mask of a box without clicks is `box_regions.mask`. To correct it, too, made it better by less than 0.01
        (docs/experiments.md, 2026-12-01).

        Args:
            clicks: x, y in pixels of the image, and 1 for foreground or 0 for background. If there is no box, at least
                one is foreground.
            box: half-open XYXY; () for none.
            decode, correct: of this image; they are not kept, because they refer to the image, which refers to this
                object.

        Returns:
            (h,w) over the padded image.
        """
        box, clicks = tuple(box), tuple(clicks)
        if not box:  # a mask starts with a foreground click
            first = next(i for i, (*_, label) in enumerate(clicks) if label)
            clicks = (clicks[first], *clicks[:first], *clicks[first + 1 :])
        known = next((n for n in range(len(clicks), 0, -1) if (box, clicks[:n]) in self._recent), 0)
        found = self._recent.pop((box, clicks[:known])) if known else self.first(clicks[:1], box, decode)
        if known:
            self._keep(box, clicks[:known], found)
        for n in range(known + 1, len(clicks) + 1):
            found = self._corrected(found, clicks[:n], box, correct)
            self._keep(box, clicks[:n], found)
        return found

    def _keep(self, box: tuple, clicks: tuple, found: Tensor) -> None:
        self._recent[box, clicks] = found
        while len(self._recent) > KEPT:
            del self._recent[next(iter(self._recent))]

    def first(self, clicks: Sequence[tuple[float, float, int]], box: Sequence[float], decode: Decode) -> Tensor:
        """The mask logits (h,w) of a box, or without a box of one foreground click, before any correction."""
        if box:
            shares = self.transform.cell_shares(torch.from_numpy(self.box_regions.mask(box)), self.grid)
            return (shares.to(self.maps[0].device) * 2 - 1) * SURE
        logits = decode(clicks, ())
        logits = logits + self._evidence(clicks[0], logits.shape)
        under = self._under(*clicks[0][:2], logits)
        logits[under] = logits[under].clamp(min=SURE)
        return self.clicked_parts(logits, clicks, box)

    def clicked_parts(self, logits: Tensor, clicks: Sequence[tuple[float, float, int]], box: Sequence[float]) -> Tensor:
        """Mask logits (h,w) in which parts without a foreground click are no longer in the mask.

        With a box all parts stay, because a box may mean several.
        """
        inside = [self._cell(x, y, logits.shape)[::-1] for x, y, label in clicks if label]
        if box or not inside:
            return logits
        mask = (logits > 0).cpu().numpy()
        return torch.where(torch.from_numpy(mask & ~parts_at(mask, inside)).to(logits.device), -SURE, logits)

    def _corrected(self, before: Tensor, clicks: Sequence, box: Sequence[float], correct: Correct) -> Tensor:
        """Correct a mask in a window around it, its box and the last click; a large window has larger cells.

        A foreground click only adds to the mask and a background click only removes from it, except for the first click
        without a box. A foreground click outside of the box tells that more is meant, so the box counts no more. All of
        this holds to the cell: the mask of a box without clicks has the edges of pixels, and is now rounded to cells.
        """
        within = [box[0] <= x < box[2] and box[1] <= y < box[3] for x, y, label in clicks if label] if box else []
        closed = box if all(within) else ()
        window, size = self._window(before, clicks, closed)
        inside = before[window][None, None]
        coarse = F.interpolate(inside, size=size, mode="area")[0]
        shares = self.in_window(window, before.shape, size)
        found = correct(window, shares, coarse, *self.in_cells(clicks, closed, window, before.shape, size))
        after = before.clone()
        change = F.interpolate((found - coarse)[None], size=inside.shape[2:], mode="bilinear", align_corners=False)
        after[window] += change[0, 0]
        if box or len(clicks) > 1:
            after = torch.maximum(after, before) if clicks[-1][2] else torch.minimum(after, before)
        self._follow(after, clicks[-REMEMBERED:])
        if closed:
            self._clear_outside(after, closed)
        return self.clicked_parts(after, clicks, box)

    def _window(
        self, mask: Tensor, clicks: Sequence, box: Sequence[float]
    ) -> tuple[tuple[slice, slice], tuple[int, int]]:
        """The rows and columns of the window in which a mask is corrected, and the size to which they are reduced."""
        ends = [self._cell(*click[:2], mask.shape) for click in clicks[-1:]]
        if box:
            ends += self._cells_of(box, mask.shape)
        found = (mask > 0).nonzero()
        if len(found):
            ends += [tuple(found.amin(0).tolist()), tuple(found.amax(0).tolist())]
        needed = [MARGIN * (max(cells) - min(cells) + 1) for cells in zip(*ends)]
        scale = max(1.0, *(min(cells, side) / WINDOW for cells, side in zip(needed, mask.shape)))
        whole, parts = round(scale * WINDOW), []
        for cells, side in zip(zip(*ends), mask.shape):
            start = max(0, min((min(cells) + max(cells) - whole) // 2, side - whole))
            parts.append(slice(start, min(side, start + whole)))
        return tuple(parts), tuple(max(1, round((part.stop - part.start) / scale)) for part in parts)

    def in_window(self, window: tuple[slice, slice], grid: Sequence[int], size: Sequence[int]) -> list[Tensor]:
        """The class maps in a window of the mask grid, reduced to `size`: (1,C,h,w) for each list of classes."""
        y, x = (
            (part.start + (torch.arange(count, device=self.maps[0].device) + 0.5) * ((part.stop - part.start) / count))
            * (2 / side)
            - 1
            for part, side, count in zip(window, grid, size)
        )
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        return [
            F.grid_sample(shares[None].float(), at, padding_mode="border", align_corners=False) for shares in self.maps
        ]

    def in_cells(
        self,
        clicks: Sequence,
        box: Sequence[float],
        window: tuple[slice, slice],
        grid: Sequence[int],
        size: Sequence[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points (1,N,2), labels (1,N) and boxes (1,4) in cells of a reduced window, without clicks outside of it."""
        rows, columns = window
        down, across = ((part.stop - part.start) / count for part, count in zip(window, size))
        found = []
        for x, y, label in clicks[-REMEMBERED:]:
            row, column = self._cell(x, y, grid)
            if rows.start <= row < rows.stop and columns.start <= column < columns.stop:
                found.append((int((column - columns.start) / across), int((row - rows.start) / down), label))
        found = torch.tensor(found or [(0, 0, -1)], device=self.maps[0].device)
        corners = torch.full((1, 4), torch.nan, device=self.maps[0].device)
        if box:
            scales = [cells / side for cells, side in zip(grid[::-1], self.transform.padded[::-1])] * 2
            ends = zip(box, scales, (columns.start, rows.start) * 2, (across, down) * 2)
            cells = [(value * scale - start) / step for value, scale, start, step in ends]
            corners = torch.tensor([cells], device=corners.device)
        return found[None, :, :2], found[None, :, 2], corners

    def _follow(self, logits: Tensor, clicks: Sequence) -> None:
        """Make the cells under the clicks follow them; a cell between clicks of both kinds follows the nearest one."""
        (height, width), (rows, columns) = self.transform.padded, logits.shape
        for x, y, label in clicks:
            under = self._under(x, y, logits)
            mine = torch.ones_like(logits[under], dtype=torch.bool)
            starts = ((part.start, count) for part, count in zip(under, mine.shape))
            down, across = (torch.arange(start, start + count, device=logits.device) + 0.5 for start, count in starts)
            down, across = down[:, None] * (height / rows), across * (width / columns)
            for other_x, other_y, other in clicks:
                if other != label:
                    mine &= torch.hypot(across - x, down - y) <= torch.hypot(across - other_x, down - other_y)
            sure = logits[under].clamp(min=SURE) if label else logits[under].clamp(max=-SURE)
            logits[under] = torch.where(mine, sure, logits[under])

    def _clear_outside(self, logits: Tensor, box: Sequence[float]) -> None:
        """Cells outside of the box are not in the mask of the box."""
        (top, left), (bottom, right) = self._cells_of(box, logits.shape)
        outside = torch.ones_like(logits, dtype=torch.bool)
        outside[top : bottom + 1, left : right + 1] = False
        logits[outside] = logits[outside].clamp(max=-SURE)

    def _evidence(self, click: tuple[float, float, int], grid: Sequence[int]) -> Tensor:
        """(h,w): how much more a cell shows what is under a click than anything else.

        It is the sum over the class maps of log(p / (1 - p)). p is the product of the cell's class shares and the unit
        vector of those under the click, 0..1.
        """
        total = 0.0
        for shares in self.maps:
            under = shares[(slice(None), *self._under(*click[:2], shares[0]))].float().mean((1, 2))
            p = torch.einsum("c,chw->hw", under / under.norm().clamp(min=0.1), shares.float())
            total = total + (p.clamp(min=LEAST) / (1 - p).clamp(min=LEAST)).log()
        return F.interpolate(total[None, None], size=tuple(grid), mode="bilinear", align_corners=False)[0, 0]

    def _under(self, x: float, y: float, grid: Tensor) -> tuple[slice, slice]:
        """The cell of a pixel and its neighbours, so that bilinear interpolation at the pixel uses these cells only."""
        row, column = self._cell(x, y, grid.shape)
        return slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)

    def _cells_of(self, box: Sequence[float], grid: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The first and the last cell of a box, each as row and column."""
        last = (max(start, end - 1) for start, end in zip(box[:2], box[2:]))
        return self._cell(*box[:2], grid), self._cell(*last, grid)

    def _cell(self, x: float, y: float, grid: Sequence[int]) -> tuple[int, int]:
        (height, width), (rows, columns) = self.transform.padded, grid
        return min(rows - 1, int(y * rows / height)), min(columns - 1, int(x * columns / width))


def _shares(probabilities: Tensor) -> Tensor:
    """Each class's share of the sum of probabilities (C,h,w), on a grid of at most GRID cells a side."""
    scale = min(1.0, GRID / max(probabilities.shape[1:]))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in probabilities.shape[1:])
        probabilities = F.interpolate(probabilities[None], size=size, mode="area")[0]
    return (probabilities / probabilities.sum(0).clamp(min=1e-6)).half()
