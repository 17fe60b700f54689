"""Divide an image into windows, and determine which pixels are final after which windows.

Shape letters: H W pixels of the image as the model sees it, h w cells of the mask grid (one cell per `stride` pixels).
If the image is resampled for the model, the result may have fewer or more pixels than the model sees.
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
"""Default size of a window in pixels, and default overlap of windows as a share of this size."""
BLENDING_SHARE = 0.45
"""Share of the memory for blending; the rest is for the activations of the model, for pixels that are read ahead, and
for what the allocator keeps."""
BLOCK = 512
"""Strips begin at multiples of this many pixels, which is the usual tile size of GeoTIFFs."""


@dataclass(frozen=True)
class Axis:
    """The windows along one axis of an image, its rows or its columns.

    Attributes:
        length: number of pixels that the model sees.
        target: number of pixels of the result.
        window: size of a window in pixels, a multiple of `stride`.
        overlap: overlap of two windows, in pixels.
        starts: first pixel of each window, ascending multiples of `stride`. The last window ends at the end of the
            image, or beyond it by less than the divisor of the model.
        stride: pixels per cell of the mask grid.

    >>> Axis.plan(length=100, target=100, window=64, overlap=32, step=32, stride=4).starts
    (0, 32, 64)
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
        """Place windows of one size at multiples of `step`, so that neighbors overlap by at least `overlap` pixels.

        If the image is smaller than the window, the window becomes smaller, unless its size is `fixed`.
        """
        padded = padded_size((length,), step)[0]
        padded = max(padded, window) if fixed else padded
        window = min(window, padded)
        hop, last = max(step, (window - overlap) // step * step), padded - window
        return cls(length, target, window, min(overlap, window - 1), (*range(0, last, hop), last), stride)

    @property
    def cells(self) -> int:
        """Number of cells that all windows cover together."""
        return (self.starts[-1] + self.window) // self.stride

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """Blending weights: per window, one weight per cell. The weights of all windows sum to 1 in each cell.

        They rise and fall over the overlap like a Hann window, and are constant in between.
        """
        n, ramp = self.window // self.stride, self.overlap // self.stride
        edge = (torch.arange(n, dtype=torch.float64) + 0.5).minimum(n - torch.arange(n) - 0.5)
        shape = torch.sin((edge / max(ramp, 0.5)).clamp(max=1) * (math.pi / 2)) ** 2
        total = torch.zeros(self.cells, dtype=torch.float64)
        for start in self.starts:
            total[start // self.stride :][:n] += shape
        return tuple((shape / total[start // self.stride :][:n]).float() for start in self.starts)

    def position(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """For each pixel of the result: the cell before it, and the fraction 0..1 of the way to the next cell.

        This is the rule of bilinear interpolation with `align_corners=False`.
        """
        position = (pixels.double() + 0.5) * (self.length / self.target / self.stride) - 0.5
        position = position.clamp(0, self.cells - 1)
        cell = position.floor()
        return cell.long(), (position - cell).float()

    def cell(self, pixel: int) -> int:
        """The first cell that a pixel of the result depends on."""
        return int(self.position(torch.tensor([pixel]))[0])

    def span(self, pixels: range) -> range:
        """The cells that these pixels of the result depend on."""
        return range(self.cell(pixels.start), min(self.cell(pixels.stop - 1) + 2, self.cells))

    def touching(self, cells: range) -> list[int]:
        """Indices of the windows that contain any of these cells."""
        n = self.window // self.stride
        return [
            k for k, s in enumerate(self.starts) if s // self.stride < cells.stop and s // self.stride + n > cells.start
        ]

    def ready(self, k: int) -> int:
        """Number of pixels of the result, from its start, that are final after windows 0 to k were added."""
        if k + 1 == len(self.starts):
            return self.target
        complete = self.starts[k + 1] // self.stride  # a pixel is interpolated from two cells, so both must be final
        return max(0, math.ceil((complete - 0.5) * self.stride * self.target / self.length - 0.5 - 1e-9))

    def first_window(self, pixel: int) -> int:
        """Index of the first window that a pixel of the result depends on."""
        return self.touching(range(self.cell(pixel), self.cell(pixel) + 1))[0]

    def pixels_of(self, k: int) -> range:
        """The pixels of the result that window k may influence."""
        scale, margin = self.target / self.length, 1 + self.stride * self.target // self.length
        begin, end = self.starts[k] * scale, (self.starts[k] + self.window) * scale
        return range(max(0, int(begin) - margin), min(self.target, math.ceil(end) + margin))


@dataclass(frozen=True)
class Plan:
    """The windows of an image, and the strips of columns in which the result is computed."""

    rows: Axis
    cols: Axis
    strips: tuple[range, ...]  # ranges of columns of the result, from left to right
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
        """Divide an image into windows and strips.

        Args:
            size: (H,W) that the model sees.
            window, overlap: in pixels.
            divisor: sides of windows are multiples of it.
            stride: pixels per cell of the mask grid.
            num_classes: C.
            memory: bytes that may be used. Strips are as wide as the share for blending allows.
            fixed: the model takes windows of this size only, even for smaller images.
            target: (H,W) of the result; None for `size`.

        Raises:
            ValueError: the window is not a positive multiple of `divisor`; the overlap is too large; or the memory is
                too small for the narrowest strip.
        """
        target = target or size
        step = stride if fixed else divisor
        if window <= 0 or window % step:
            raise ValueError(f"a window of {window} pixels does not fit the model: give a multiple of {step}")
        if not 0 <= overlap <= window - step:
            raise ValueError(f"an overlap of {overlap} pixels is out of range: 0 to {window - step} for this window")
        rows, cols = (Axis.plan(n, t, window, overlap, step, stride, fixed) for n, t in zip(size, target))
        column = strip_bytes(rows, num_classes) * size[1] / target[1] / stride  # bytes per column of the result
        share = memory * BLENDING_SHARE
        width = int(share // column) // BLOCK * BLOCK
        if width == 0 and target[1] * column > share:
            least = math.ceil(min(BLOCK, target[1]) * column / BLENDING_SHARE / 2**20)
            raise ValueError(
                f"{memory / 2**20:.0f} MiB are too few to blend {num_classes} classes in windows of {window}: give"
                f" at least {least} MiB, fewer classes or a smaller window"
            )
        width = width or target[1]
        return cls(
            rows, cols, tuple(range(x, min(x + width, target[1])) for x in range(0, target[1], width)), num_classes
        )


def strip_bytes(rows: Axis, num_classes: int) -> int:
    """Bytes per column of cells, for the rows being blended and for the finished rows that are being written."""
    return 2 * 4 * num_classes * (rows.window // rows.stride + 3)
