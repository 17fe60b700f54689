"""The best class of each pixel, from probabilities on a coarser grid.

Shape letters: C classes, H W pixels, h w grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 2**20
"""Number of pixels whose labels are computed in one step."""
MIXED_AT_ONCE = 2**13
"""Number of pixels computed in one step where the surrounding cells differ in class; few enough for the CPU's cache."""
VALUES_AT_ONCE = 2**26
"""Number of probabilities interpolated in one step where all classes are computed; memory holds several copies."""

Neighbors = tuple[Tensor, Tensor, Tensor]
"""For each pixel along one axis: the cell before it, the cell after it, and its position between these two, 0..1."""


def interpolated_neighbors(pixels: int, cells: int, span: float) -> Neighbors:
    """The cells on both sides of each pixel, as in bilinear interpolation without aligned corners.

    Args:
        pixels: number of pixels along the axis.
        cells: number of cells along the axis.
        span: number of pixels that the cells cover.
    """
    position = ((torch.arange(pixels) + 0.5) * (cells / span) - 0.5).clamp(0, cells - 1)
    before = position.long()
    return before, (before + 1).clamp(max=cells - 1), position - before


def best_class(grid: Tensor, y: Neighbors, x: Neighbors) -> tuple[Tensor, Tensor]:
    """Compute the label and score of each pixel: bilinear interpolation, then the best class.

    Bilinear weights are not negative and sum to 1. So a class that is best in all four cells around a pixel is also
    best in that pixel, and only pixels between cells of different classes need the probabilities of all classes.

    Args:
        grid: probabilities (h,w,C), contiguous.
        y, x: neighbors of the H rows and of the W columns.

    Returns:
        labels int32 and scores float, (H,W).
    """
    (y0, y1, fy), (x0, x1, fx) = ([side.to(grid.device) for side in axis] for axis in (y, x))
    if grid.device.type != "cpu":
        return _best_everywhere(grid, (y0, y1, fy), (x0, x1, fx))
    best, winner = _best(grid)
    winner = winner.int()
    labels = winner.new_empty(len(y0), len(x0))
    score = best.new_empty(len(y0), len(x0))
    height = max(1, PIXELS_AT_ONCE // len(x0))
    for r in range(0, len(y0), height):
        part = slice(r, r + height)
        across = torch.lerp(best[y0[part]], best[y1[part]], fy[part, None])
        scores = torch.lerp(across.index_select(1, x0), across.index_select(1, x1), fx)
        above, below = winner[y0[part]], winner[y1[part]]
        label = above.index_select(1, x0)
        mixed = (above != below).index_select(1, x1) | (label != below.index_select(1, x0))
        mixed |= label != above.index_select(1, x1)
        for chunk in mixed.flatten().nonzero()[:, 0].split(MIXED_AT_ONCE):
            i, j = chunk // len(x0) + r, chunk % len(x0)
            value, index = _best(_between(grid, (y0[i], y1[i], fy[i]), (x0[j], x1[j], fx[j])))
            label.view(-1).index_copy_(0, chunk, index.int())
            scores.view(-1).index_copy_(0, chunk, value)
        labels[part], score[part] = label, scores
    return labels, score


def _best_everywhere(grid: Tensor, y: Neighbors, x: Neighbors) -> tuple[Tensor, Tensor]:
    """`best_class` on a GPU: all classes in all pixels, because choosing pixels would make the CPU wait for the GPU."""
    (y0, y1, fy), (x0, x1, fx) = y, x
    labels = torch.empty((len(y0), len(x0)), dtype=torch.int32, device=grid.device)
    score = grid.new_empty(labels.shape)
    height = max(1, VALUES_AT_ONCE // (len(x0) * grid.shape[-1]))
    for r in range(0, len(y0), height):
        part = slice(r, r + height)
        across = torch.lerp(grid[y0[part]], grid[y1[part]], fy[part, None, None])
        between = torch.lerp(across.index_select(1, x0), across.index_select(1, x1), fx[:, None])
        score[part], labels[part] = between.max(dim=-1)
    return labels, score


def _best(grid: Tensor) -> tuple[Tensor, Tensor]:
    """`grid.max(dim=-1)` on a CPU, values and indices; the index is found with NumPy, which is 3 times faster."""
    index = torch.from_numpy(grid.numpy().argmax(axis=-1))
    return grid.gather(-1, index[..., None])[..., 0], index


def _between(grid: Tensor, y: Neighbors, x: Neighbors) -> Tensor:
    """Interpolate a grid of probabilities (h,w,C) at N positions between its cells -> (N,C)."""
    (y0, y1, fy), (x0, x1, fx) = y, x
    width = grid.shape[1]
    corners = torch.stack([y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1], dim=1)
    weights = torch.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], dim=1)
    return F.embedding_bag(corners, grid.flatten(0, 1), per_sample_weights=weights, mode="sum")
