"""From windows to a label map: probabilities are blended on the mask grid, then labels are computed per pixel.

No array has the size of the image times the number of classes: a strip of columns is processed from top to bottom, and
finished rows are passed on. Alphabet: B windows, C classes, H W pixels, h w cells of the mask grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.inference.windows import Axis, Plan
from skysense_o.parallel import OrderedThreadPool

PIXELS_AT_ONCE = 2**20
"""Pixels whose labels are computed in one step."""
MIXED_AT_ONCE = 2**13
"""Pixels between cells of different classes that are computed in one step; few enough to stay in the CPU's cache."""

Model = Callable[[Tensor], Tensor]
"""uint8 (B,3,window,window) -> probabilities (B,C,h,w)."""


@dataclass(frozen=True)
class WindowRow:
    """The pixels of one row of windows over a strip."""

    pixels: Tensor  # uint8 (3,window,W') of all columns that the windows of the strip cover
    has_data: tuple[bool, ...]  # per window of the strip; windows without any valid pixel are skipped


@dataclass(frozen=True)
class Band:
    """Finished rows of a strip, still on the mask grid."""

    rows: range  # rows of the result
    grid: Tensor  # (h,w,C) blended probabilities
    top: int  # index of the first row of cells in grid


def sweep(
    plan: Plan, strip: range, rows: range, load: Callable[[int], WindowRow], pool: OrderedThreadPool, batch: int = 1
) -> Iterator[Band]:
    """Run the windows of a strip from top to bottom, and yield finished rows.

    Args:
        strip: columns of the result, one of `plan.strips`.
        rows: rows of the result to compute.
        load: index of a row of windows -> its pixels over `plan.cols.touching(...)`. It is called in another thread,
            one row ahead.
        pool: runs the model on batches, see `Model`.
        batch: windows per call of the model. Which windows share a batch depends on the plan alone.
    """
    cells = plan.cols.span(strip)
    columns = plan.cols.touching(cells)
    n = plan.rows.window // plan.rows.stride
    top, done, buffer = plan.rows.cell(rows.start), rows.start, None
    indices = range(plan.rows.first_window(rows.start), len(plan.rows.starts))
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(load, indices[0])
        for k in indices:
            row: WindowRow = ahead.result()
            if k + 1 in indices:
                ahead = reader.submit(load, k + 1)
            if buffer is None:
                buffer = torch.zeros(n + 3, len(cells), plan.num_classes)
            buffer = _add_row(plan, buffer, top, cells, k, columns, row, pool, batch)
            end = min(plan.rows.ready(k), rows.stop)
            if end > done:
                height = plan.rows.span(range(done, end)).stop - top
                yield Band(range(done, end), buffer[:height].clone(), top)
                if end >= rows.stop:
                    return
                finished = plan.rows.cell(min(end, plan.rows.target - 1)) - top
                rest = len(buffer) - finished
                buffer[:rest] = buffer[finished:].clone() if rest > finished else buffer[finished:]
                buffer[rest:] = 0
                top, done = top + finished, end


def _add_row(
    plan: Plan,
    buffer: Tensor,
    top: int,
    cells: range,
    k: int,
    columns: list[int],
    row: WindowRow,
    pool: OrderedThreadPool,
    batch: int,
) -> Tensor:
    """Add the windows of row k that have data to the buffer. Returns the buffer, now on the model's device."""
    rows, cols = plan.rows, plan.cols
    skip = max(0, top - rows.starts[k] // rows.stride)  # rows of cells above the buffer
    at = max(0, rows.starts[k] // rows.stride - top)
    used = [c for c, flag in zip(columns, row.has_data) if flag]
    left = cols.starts[columns[0]]
    groups = [used[first : first + batch] for first in range(0, len(used), batch)]
    windows = (torch.stack([row.pixels[:, :, cols.starts[c] - left :][..., : cols.window] for c in g]) for g in groups)
    for group, probabilities in zip(groups, pool(windows)):
        for c, p in zip(group, probabilities):
            buffer = buffer.to(p.device)
            begin = cols.starts[c] // cols.stride
            a, b = max(begin, cells.start), min(begin + p.shape[-1], cells.stop)
            weight = rows.weights[k][skip:, None] * cols.weights[c][None, a - begin : b - begin]
            part = p[:, skip:, a - begin : b - begin].permute(1, 2, 0)
            target = buffer[at : at + len(part), a - cells.start : b - cells.start]
            target.addcmul_(part.float(), weight.to(p.device)[..., None])
    return buffer


def resolve(band: Band, plan: Plan, strip: range) -> tuple[Tensor, Tensor]:
    """Compute the label and score of each pixel of a band: bilinear interpolation, then the best class.

    Bilinear weights are not negative and sum to 1. So a class that is best in all four cells around a pixel is also
    best in that pixel, and only pixels between cells of different classes need the probabilities of all classes.

    Returns:
        labels (H,W) int32 and scores (H,W) float.
    """
    grid, top = band.grid, band.top
    best, winner = _best(grid)
    y0, y1, fy = _neighbors(plan.rows, band.rows, top, grid)
    x0, x1, fx = _neighbors(plan.cols, strip, plan.cols.span(strip).start, grid.transpose(0, 1))
    labels = torch.empty(len(y0), len(x0), dtype=torch.int32)
    score = torch.empty(len(y0), len(x0))
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
            label.view(-1).index_copy_(0, chunk, index)
            scores.view(-1).index_copy_(0, chunk, value)
        labels[part], score[part] = label.cpu(), scores.cpu()
    return labels, score


def _best(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value and its index over the last dimension, as `max(dim=-1)`; on a CPU with NumPy, 3 times faster."""
    if grid.device.type != "cpu":
        return grid.max(dim=-1)
    index = torch.from_numpy(grid.numpy().argmax(axis=-1))
    return grid.gather(-1, index[..., None])[..., 0], index


def _neighbors(axis: Axis, pixels: range, first: int, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel the index of the cell before it and of the cell after it, and the fraction between them.

    Args:
        first: index on the axis of the first cell of `grid`. The last cell is its own neighbor.
    """
    cell, fraction = axis.position(torch.arange(pixels.start, pixels.stop))
    before = (cell - first).to(grid.device)
    return before, (before + 1).clamp(max=len(grid) - 1), fraction.to(grid.device)


def _between(grid: Tensor, y: tuple[Tensor, Tensor, Tensor], x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Interpolate the probabilities of all classes, (N,C), at N positions between cells (h,w,C); see `_neighbors`."""
    (y0, y1, fy), (x0, x1, fx) = y, x
    width = grid.shape[1]
    corners = torch.stack([y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1], dim=1)
    weights = torch.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], dim=1)
    return F.embedding_bag(corners, grid.flatten(0, 1), per_sample_weights=weights, mode="sum")


def run_windows(
    plan: Plan,
    strip: range,
    rows: range,
    load: Callable[[int], WindowRow],
    model: Model,
    write: Callable[[range, range, Tensor, Tensor], None],
    batch: int = 1,
    pool: int = 1,
) -> None:
    """Segment a strip; `write(rows, strip, labels, score)` gets finished rows, in another thread.

    Args:
        plan, strip, rows, load, batch: see `sweep`.
        model: see `Model`.
        pool: number of batches in parallel, see `OrderedThreadPool`.
    """

    def finish(band: Band) -> None:
        with torch.inference_mode():
            write(band.rows, strip, *resolve(band, plan, strip))

    with OrderedThreadPool(model, pool) as workers, ThreadPoolExecutor(1) as writer:
        pending: Future | None = None
        for band in sweep(plan, strip, rows, load, workers, batch):
            if pending is not None:
                pending.result()  # at most one band waits, which bounds memory; errors of the thread are raised here
            pending = writer.submit(finish, band)
        if pending is not None:
            pending.result()


def reflected(length: int, begin: int, end: int) -> Tensor:
    """Indices of the pixels to read for begin..end, if the image of this length is continued by its reflection.

    >>> reflected(4, -2, 6).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    period = max(1, 2 * (length - 1))
    index = torch.arange(begin, end) % period
    return index.minimum(period - index) if length > 1 else torch.zeros(end - begin, dtype=torch.int64)
