"""Which windows an image of any size is seen through, and which of its pixels are ready when.

Alphabet: H W pixels of the image as the model sees it, h w cells (the head's grid, `stride` pixels a cell).
The result has its own pixels: fewer or more than the model sees where an image is resampled for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from skysense_o.geometry import padded_size

WINDOW = 512
OVERLAP = 0.25
BLENDING_SHARE = 0.5
"""Of the memory that may be used; the rest is for the model's own maps and what is read ahead."""
BLOCK = 512
"""Strips begin at multiples of so many pixels, since GeoTIFFs are tiled so."""


@dataclass(frozen=True)
class Axis:
    """Windows along the rows or the columns of an image.

    length: pixels that the model sees. target: pixels of the result. window: pixels of a window, a multiple of
    `stride`. starts: of the windows, ascending multiples of `stride`; the last window ends at or, by less than the
    model's divisor, beyond the image's end.
    """

    length: int
    target: int
    window: int
    overlap: int
    starts: tuple[int, ...]
    stride: int

    @classmethod
    def plan(
        cls, length: int, target: int, window: int, overlap: int, step: int, stride: int, fixed: bool = False
    ) -> Axis:
        """Windows of one size that start at multiples of `step` and share at least `overlap` pixels with the next.

        An image smaller than a window has a smaller one, unless their size is `fixed`.
        """
        padded = padded_size((length,), step)[0]
        padded = max(padded, window) if fixed else padded
        window = min(window, padded)
        hop, last = max(step, (window - overlap) // step * step), padded - window
        return cls(length, target, window, min(overlap, window - 1), (*range(0, last, hop), last), stride)

    @property
    def cells(self) -> int:
        """How many cells the windows cover together."""
        return (self.starts[-1] + self.window) // self.stride

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """For each window the weight of each of its cells; at each cell the weights of all windows sum to 1.

        They rise and fall as Hann's window over the overlap and are flat between.
        """
        n, ramp = self.window // self.stride, self.overlap // self.stride
        edge = (torch.arange(n, dtype=torch.float64) + 0.5).minimum(n - torch.arange(n) - 0.5)
        shape = torch.sin((edge / max(ramp, 0.5)).clamp(max=1) * (math.pi / 2)) ** 2
        total = torch.zeros(self.cells, dtype=torch.float64)
        for start in self.starts:
            total[start // self.stride :][:n] += shape
        return tuple((shape / total[start // self.stride :][:n]).float() for start in self.starts)

    def position(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of the result -> the cell before each and how far it is to the next, 0..1 (bilinear, half-pixel)."""
        place = (pixels.double() + 0.5) * (self.length / self.target / self.stride) - 0.5
        place = place.clamp(0, self.cells - 1)
        cell = place.floor()
        return cell.long(), (place - cell).float()

    def cell(self, pixel: int) -> int:
        """The first cell that a pixel of the result is made from."""
        return int(self.position(torch.tensor([pixel]))[0])

    def span(self, pixels: range) -> range:
        """The cells that these pixels of the result are made from."""
        return range(self.cell(pixels.start), min(self.cell(pixels.stop - 1) + 2, self.cells))

    def touching(self, cells: range) -> list[int]:
        """Numbers of the windows that hold any of these cells."""
        n = self.window // self.stride
        return [
            k for k, s in enumerate(self.starts) if s // self.stride < cells.stop and s // self.stride + n > cells.start
        ]

    def ready(self, k: int) -> int:
        """How many pixels of the result, from its start, are final once windows 0 to k have been added."""
        if k + 1 == len(self.starts):
            return self.target
        complete = self.starts[k + 1] // self.stride  # a pixel is final when the cell after it is, too
        return max(0, math.ceil((complete - 0.5) * self.stride * self.target / self.length - 0.5 - 1e-9))

    def first_window(self, pixel: int) -> int:
        """The first window that a pixel of the result is made from."""
        return self.touching(range(self.cell(pixel), self.cell(pixel) + 1))[0]

    def pixels_of(self, k: int) -> range:
        """Pixels of the result that window k may take part in."""
        scale, margin = self.target / self.length, 1 + self.stride * self.target // self.length
        begin, end = self.starts[k] * scale, (self.starts[k] + self.window) * scale
        return range(max(0, int(begin) - margin), min(self.target, math.ceil(end) + margin))


@dataclass(frozen=True)
class Plan:
    """Windows over an image, and the column strips in which its result is made."""

    rows: Axis
    cols: Axis
    strips: tuple[range, ...]  # of the result's columns, from left to right
    num_classes: int

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        *,
        window: int,
        overlap: int,
        divisor: int,
        stride: int,
        num_classes: int,
        memory: int,
        fixed: bool = False,
        target: tuple[int, int] | None = None,
    ) -> Plan:
        """
        Args:
            size: (H,W) that the model sees. target: of the result; the same where None.
            window, overlap: pixels. divisor, stride: of the model's input and of its head's grid.
            classes: C. memory: bytes that may be used; the strips are as wide as the share for blending allows.
            fixed: the model takes windows of this size only, however small the image.

        Raises:
            ValueError: a window that is no positive multiple of `divisor`, an overlap that is not below it, or a memory
                too small for a strip of one block.
        """
        target = target or size
        step = stride if fixed else divisor
        if window <= 0 or window % step:
            raise ValueError(f"a window of {window} pixels does not fit the model: give a multiple of {step}")
        if not 0 <= overlap <= window - step:
            raise ValueError(f"an overlap of {overlap} pixels is out of range: 0 to {window - step} for this window")
        rows, cols = (Axis.plan(n, t, window, overlap, step, stride, fixed) for n, t in zip(size, target))
        column = strip_bytes(rows, num_classes) * size[1] / target[1] / stride  # bytes a column of the result
        share = memory * BLENDING_SHARE
        width = int(share // column) // BLOCK * BLOCK
        if width == 0 and target[1] * column > share:
            least = math.ceil(min(BLOCK, target[1]) * column / BLENDING_SHARE / 2**20)
            raise ValueError(
                f"{memory / 2**20:.0f} MiB are too few to blend {num_classes} classes in windows of {window}: at"
                f" least {least} MiB are needed; give more memory, fewer classes or a smaller window"
            )
        width = width or target[1]
        return cls(
            rows, cols, tuple(range(x, min(x + width, target[1])) for x in range(0, target[1], width)), num_classes
        )


def strip_bytes(rows: Axis, num_classes: int) -> int:
    """Bytes a column of cells: the rows being blended and, handed to the thread that writes, those just finished."""
    return 2 * 4 * num_classes * (rows.window // rows.stride + 3)
