"""From windows to a label map: probabilities are blended on the mask grid, then labels are computed per pixel.

No array has the size of the image times the number of classes: a strip of columns is processed from top to bottom, and
finished rows are passed on.

Shape letters: B windows, C classes, H W pixels, h w cells of the mask grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skysense_o.best_class import Neighbors, best_class
from skysense_o.inference.windows import Axis, Plan
from skysense_o.parallel import OrderedThreadPool

Model = Callable[[Tensor], Tensor]
"""Function: windows uint8 (B,3,window,window) -> probabilities (B,C,h,w)."""


@dataclass(frozen=True)
class WindowRow:
    """The pixels of one row of windows, for the columns of a strip."""

    pixels: Tensor  # uint8 (3,window,W') of all columns that the windows of the strip cover
    has_data: tuple[bool, ...]  # per window of the strip; windows without any valid pixel are skipped


@dataclass(frozen=True)
class Band:
    """Finished rows of a strip, still on the mask grid."""

    rows: range  # rows of the result
    grid: Tensor  # (h,w,C) blended probabilities; `sweep` overwrites them when the next band is taken
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
                yield Band(range(done, end), buffer[:height], top)
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
    skip = max(0, top - rows.starts[k] // rows.stride)  # rows of cells of the window that lie above the buffer
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
    """Labels (H,W) int32 and scores (H,W) float of the pixels of a band, on the CPU; see `best_class`."""
    y = _neighbors(plan.rows, band.rows, band.top, len(band.grid))
    x = _neighbors(plan.cols, strip, plan.cols.span(strip).start, band.grid.shape[1])
    labels, score = best_class(band.grid, y, x)
    return labels.cpu(), score.cpu()


def _neighbors(axis: Axis, pixels: range, first: int, cells: int) -> Neighbors:
    """The cell before and the cell after each pixel.

    Args:
        first: index of the first available cell along the axis.
        cells: number of available cells. The last of them is its own neighbor.
    """
    cell, fraction = axis.position(torch.arange(pixels.start, pixels.stop))
    before = cell - first
    return before, (before + 1).clamp(max=cells - 1), fraction


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
                pending.result()  # errors of the thread are raised here
            # Copied after the band before it was written and freed: `strip_bytes` counts one copy.
            pending = writer.submit(finish, replace(band, grid=band.grid.clone()))
            del band
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
