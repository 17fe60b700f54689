"""From windows to a label map: probabilities blended at the head's stride, labels at full size.

Alphabet: B windows, C classes, H W pixels, h w cells. Nothing here has the size of the image times the classes: a strip
of columns is swept from top to bottom, and what is final leaves.
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
ROWS_AT_ONCE = 2**13
"""Pixels between cells of different winners that are resolved at a time: few, so that they stay in a cache."""

Model = Callable[[Tensor], Tensor]
"""uint8 (B,3,window,window) -> probabilities (B,C,h,w)."""


@dataclass(frozen=True)
class WindowRow:
    """One row of windows over a strip, read."""

    pixels: Tensor  # uint8 (3,window,W'), the columns that the strip's windows cover together
    wanted: tuple[bool, ...]  # of each window of the strip; the others hold no valid pixel and are left out


@dataclass(frozen=True)
class Band:
    """Finished rows of a strip, as cells still."""

    rows: range  # of the result
    grid: Tensor  # (h,w,C) blended probabilities
    top: int  # row of cells that grid begins with


def sweep(
    plan: Plan, strip: range, rows: range, load: Callable[[int], WindowRow], pool: OrderedThreadPool, batch: int = 1
) -> Iterator[Band]:
    """Run the windows of a strip from top to bottom and hand on what is final.

    Args:
        strip: columns of the result, one of `plan.strips`. rows: of the result that are wanted.
        load: number of a row of windows -> its pixels over `plan.cols.touching(...)`; called in another thread, one
            row ahead.
        lanes: the model, see `Model`.
        batch: windows that the model sees at a time. Which windows share a batch depends on the plan alone.
    """
    cells = plan.cols.span(strip)
    columns = plan.cols.touching(cells)
    n = plan.rows.window // plan.rows.stride
    top, done, buffer = plan.rows.cell(rows.start), rows.start, None
    numbers = range(plan.rows.first_window(rows.start), len(plan.rows.starts))
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(load, numbers[0])
        for k in numbers:
            row: WindowRow = ahead.result()
            if k + 1 in numbers:
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
                moved = plan.rows.cell(min(end, plan.rows.target - 1)) - top
                kept = len(buffer) - moved
                buffer[:kept] = buffer[moved:].clone() if kept > moved else buffer[moved:]
                buffer[kept:] = 0
                top, done = top + moved, end


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
    """Add the wanted windows of row k to the buffer; the buffer, on the model's device from the first window on."""
    rows, cols = plan.rows, plan.cols
    skip = max(0, top - rows.starts[k] // rows.stride)  # cells above what is kept
    at = max(0, rows.starts[k] // rows.stride - top)
    wanted = [c for c, flag in zip(columns, row.wanted) if flag]
    left = cols.starts[columns[0]]
    groups = [wanted[first : first + batch] for first in range(0, len(wanted), batch)]
    windows = (torch.stack([row.pixels[:, :, cols.starts[c] - left :][..., : cols.window] for c in g]) for g in groups)
    for some, answers in zip(groups, pool(windows)):
        for c, p in zip(some, answers):
            buffer = buffer.to(p.device)
            begin = cols.starts[c] // cols.stride
            a, b = max(begin, cells.start), min(begin + p.shape[-1], cells.stop)
            weight = rows.weights[k][skip:, None] * cols.weights[c][None, a - begin : b - begin]
            part = p[:, skip:, a - begin : b - begin].permute(1, 2, 0)
            target = buffer[at : at + len(part), a - cells.start : b - cells.start]
            target.addcmul_(part.float(), weight.to(p.device)[..., None])
    return buffer


def resolve(band: Band, plan: Plan, strip: range) -> tuple[Tensor, Tensor]:
    """Labels (H,W) int32 and scores (H,W) float of a band's pixels: bilinear between the cells, then the best name.

    The bilinear weights of a pixel are not negative and sum to 1. So a name that is best in all four cells round a
    pixel is best there too, and only pixels between cells of different winners need the numbers of all classes.
    """
    grid, top = band.grid, band.top
    best, winner = _best(grid)
    y0, y1, fy = _places(plan.rows, band.rows, top, grid)
    x0, x1, fx = _places(plan.cols, strip, plan.cols.span(strip).start, grid.transpose(0, 1))
    labels = torch.empty(len(y0), len(x0), dtype=torch.int32)
    score = torch.empty(len(y0), len(x0))
    height = max(1, PIXELS_AT_ONCE // len(x0))
    for r in range(0, len(y0), height):
        part = slice(r, r + height)
        across = torch.lerp(best[y0[part]], best[y1[part]], fy[part, None])
        scores = torch.lerp(across.index_select(1, x0), across.index_select(1, x1), fx)
        above, below = winner[y0[part]], winner[y1[part]]
        found = above.index_select(1, x0)
        mixed = (above != below).index_select(1, x1) | (found != below.index_select(1, x0))
        mixed |= found != above.index_select(1, x1)
        where = mixed.flatten().nonzero()[:, 0]
        for some in where.split(ROWS_AT_ONCE):
            i, j = some // len(x0) + r, some % len(x0)
            value, index = _best(_between(grid, (y0[i], y1[i], fy[i]), (x0[j], x1[j], fx[j])))
            found.view(-1).index_copy_(0, some, index)
            scores.view(-1).index_copy_(0, some, value)
        labels[part], score[part] = found.cpu(), scores.cpu()
    return labels, score


def _best(grid: Tensor) -> tuple[Tensor, Tensor]:
    """(...,C) -> the largest of each row and its place, as `max(dim=-1)`; on a CPU by NumPy, three times faster."""
    if grid.device.type != "cpu":
        return grid.max(dim=-1)
    place = torch.from_numpy(grid.numpy().argmax(axis=-1))
    return grid.gather(-1, place[..., None])[..., 0], place


def _places(axis: Axis, pixels: range, first: int, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel the cell before it, the one after it (the last is its own neighbour), and how far it is between.

    grid: whose first cell is number `first` of the axis.
    """
    cell, fraction = axis.position(torch.arange(pixels.start, pixels.stop))
    before = (cell - first).to(grid.device)
    return before, (before + 1).clamp(max=len(grid) - 1), fraction.to(grid.device)


def _between(grid: Tensor, y: tuple[Tensor, Tensor, Tensor], x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(N,C): the numbers of all classes at N places between cells (h,w,C). y, x: as `_places` gives them."""
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
    """Sweep a strip; what is final is resolved and handed to `write(rows, strip, labels, score)` in another thread.

    lanes: batches that the model runs side by side, see `OrderedThreadPool`.
    """

    def finish(band: Band) -> None:
        with torch.inference_mode():
            write(band.rows, strip, *resolve(band, plan, strip))

    with OrderedThreadPool(model, pool) as several, ThreadPoolExecutor(1) as writer:
        pending: Future | None = None
        for band in sweep(plan, strip, rows, load, several, batch):
            if pending is not None:
                pending.result()  # one band waits at most: memory stays bounded, and errors come out
            pending = writer.submit(finish, band)
        if pending is not None:
            pending.result()


def reflected(length: int, begin: int, end: int) -> Tensor:
    """Numbers of the pixels to read for begin..end where those beyond an image of `length` are its reflection."""
    period = max(1, 2 * (length - 1))
    place = torch.arange(begin, end) % period
    return place.minimum(period - place) if length > 1 else torch.zeros(end - begin, dtype=torch.int64)
