"""From images to the model's input and back.

`prepare` normalises and pads. For a tower with a fixed input size it also squeezes: it resizes images to a square of
this size without keeping the aspect ratio. `ImageTransform.restore` is the inverse: it undoes the
squeeze, crops the padding and resizes.

Pixel coordinates: pixel i covers [i, i + 1). A point (x, y) names a pixel and means its centre. A box is half-open
XYXY, (x0, y0, x1, y1): pixel (x1 - 1, y1 - 1) is the last pixel inside.

Shape letters: B images, T phrases, C classes, H W pixels, h w grid.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.best_class import best_class, interpolated_neighbors
from skysense_o.sample import Reduce

if TYPE_CHECKING:
    from skysense_o.modeling.tower import Tower

RESTORE_BYTES = 256 * 2**20
"""Memory, in bytes, for the probabilities of one chunk of classes while they are resized."""


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Round (height, width) up to multiples of `divisor`."""
    return tuple(-(-side // divisor) * divisor for side in size)


@dataclass(frozen=True)
class ImageTransform:
    """How one image was prepared for the tower, and the inverse mapping of coordinates and masks.

    Attributes:
        size: (H,W) of the image.
        padded: (H,W) of the image after padding at the right and the bottom.
        prepared: (h0,w0) of the tower's input; equal to `padded` unless the tower squeezes to a fixed square.

    >>> transform = ImageTransform(size=(50, 100), padded=(64, 128), prepared=(64, 64))
    >>> transform.points(torch.tensor([[99.0, 49.0]])).tolist()
    [[49.25, 49.0]]
    >>> logits = torch.zeros(3, 16, 16)  # the phrases "building", "house" and "road"
    >>> transform.restore(logits, [0, 0, 1], num_classes=2)["labels"].shape
    torch.Size([50, 100])
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    prepared: tuple[int, int]

    def points(self, xy: Tensor) -> Tensor:
        """Map points from pixels of the image to pixels of the prepared image.

        Args:
            xy: float (...,2).

        Returns:
            float (...,2), fractional where the tower squeezes.
        """
        scale = [p / q for p, q in zip(self.prepared[::-1], self.padded[::-1])]
        return (xy + 0.5) * xy.new_tensor(scale) - 0.5

    def boxes(self, xyxy: Tensor) -> Tensor:
        """Map boxes from pixels of the image to pixels of the prepared image.

        The centres of the first and the last pixel are mapped, as in training, so that the prompt encoder sees the same
        two corners as for two points.

        Args:
            xyxy: float (...,4), half-open; NaN stays NaN.

        Returns:
            float (...,4), half-open.
        """
        step = xyxy.new_tensor([0, 0, 1, 1])  # difference between the last pixel inside and the half-open end
        return self.points((xyxy - step).unflatten(-1, (2, 2))).flatten(-2) + step

    def cell_shares(self, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """(h,w): the share of each cell of a grid over the padded image that a mask, bool (H,W), covers."""
        below, right = (p - n for p, n in zip(self.padded, self.size))
        return F.adaptive_avg_pool2d(F.pad(mask.float(), (0, right, 0, below))[None], grid)[0]

    def restore(
        self,
        logits: Tensor,
        phrase_to_class: Sequence[int],
        num_classes: int,
        size: tuple[int, int] | None = None,
        reduce: Reduce = "labels",
        reference_compat: bool = False,
    ) -> dict[str, Tensor]:
        """Turn the logits per phrase into probabilities per class at the size of the image.

        Applies the sigmoid, takes the maximum over the phrases of each class, resizes, crops the padding. Works on
        chunks of classes, so memory does not grow with classes times pixels unless `reduce` is "probabilities".

        Args:
            logits: (T,h',w') for the valid phrases, on any grid that covers the prepared image.
            phrase_to_class: T class indices, ascending.
            num_classes: C.
            size: (height, width) of the output; None: the image's own.
            reduce: "labels" for the best class per pixel, "probabilities" for the probabilities of all classes.
            reference_compat: keep the padding, stretched over the image, as the published code does.

        Returns:
            "labels" int64 (H,W) and "score" (H,W), the probability of the best class; or "sem_seg" (C,H,W).
        """

        def probabilities(first: int, stop: int) -> Tensor:
            begin, end = bisect_left(phrase_to_class, first), bisect_left(phrase_to_class, stop)
            classes = [c - first for c in phrase_to_class[begin:end]]
            return best_of_phrases(logits[begin:end].float().sigmoid(), classes, stop - first)

        cells = logits.shape[-2] * logits.shape[-1]
        return self._reduced(probabilities, num_classes, cells, size or self.size, reduce, reference_compat)

    def restore_probabilities(
        self, probabilities: Tensor, size: tuple[int, int] | None = None, reduce: Reduce = "labels"
    ) -> dict[str, Tensor]:
        """Resize probabilities per class to the size of the image.

        Equals `restore` without the sigmoid and the maximum over phrases.

        Args:
            probabilities: (C,h',w') in 0..1, on any grid that covers the prepared image.
            size, reduce: see `restore`.

        Returns:
            See `restore`.
        """
        classes, cells = len(probabilities), probabilities.shape[-2] * probabilities.shape[-1]
        return self._reduced(lambda i, j: probabilities[i:j], classes, cells, size or self.size, reduce, False)

    def _reduced(
        self,
        probabilities: Callable[[int, int], Tensor],
        num_classes: int,
        grid_cells: int,
        size: tuple[int, int],
        reduce: Reduce,
        reference_compat: bool,
    ) -> dict[str, Tensor]:
        """As `restore_probabilities`, in chunks of classes; probabilities: (first, stop) -> (stop-first,h',w')."""
        height, width = size
        pixels = max(self.padded[0] * self.padded[1], height * width) if reduce == "probabilities" else grid_cells
        chunk = max(1, RESTORE_BYTES // (4 * pixels))
        maps, best, labels = [], None, None
        for first in range(0, num_classes, chunk):
            grid = probabilities(first, min(first + chunk, num_classes))
            if reduce == "probabilities":
                maps.append(self._to_image(grid, size, reference_compat))
                continue
            index, score = self._best_class(grid, size, reference_compat)
            if best is None:
                best, labels = score, index.long()
            else:
                better = score > best
                best = torch.where(better, score, best)
                labels = torch.where(better, index + first, labels)
        return {"sem_seg": torch.cat(maps)} if reduce == "probabilities" else {"labels": labels, "score": best}

    def _best_class(self, grid: Tensor, size: tuple[int, int], reference_compat: bool) -> tuple[Tensor, Tensor]:
        """Labels and scores (height,width) of `_to_image`'s result, without resizing all classes to full size."""
        if reference_compat:
            grid, spans = grid[:, : self.size[0], : self.size[1]], size
        else:
            spans = [p * out / side for p, out, side in zip(self.padded, size, self.size)]
        y, x = (interpolated_neighbors(*each) for each in zip(size, grid.shape[-2:], spans))
        return best_class(grid.permute(1, 2, 0).contiguous(), y, x)

    def _to_image(self, grid: Tensor, size: tuple[int, int], reference_compat: bool) -> Tensor:
        """(C,h',w') over the padded image -> (C,height,width) over the image."""
        if reference_compat:
            cut = grid[None, :, : self.size[0], : self.size[1]]  # published bug: crops grid cells by a size in pixels
            return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)[0]
        scaled = [p * out / side for p, out, side in zip(self.padded, size, self.size)]
        if all(side.is_integer() for side in scaled):
            full = F.interpolate(grid[None], size=[int(side) for side in scaled], mode="bilinear", align_corners=False)
            return full[0, :, : size[0], : size[1]]
        # The padding begins inside an output pixel, so `interpolate` cannot be used: sample the same locations in a
        # slower way.
        y, x = (
            (torch.arange(out, device=grid.device, dtype=grid.dtype) + 0.5) * (2 / end) - 1
            for out, end in zip(size, scaled)
        )
        locations = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        return F.grid_sample(grid[None], locations, mode="bilinear", padding_mode="border", align_corners=False)[0]


def best_of_phrases(values: Tensor, phrase_to_class: Sequence[int], num_classes: int) -> Tensor:
    """Reduce values per phrase to values per class by their maximum.

    Args:
        values: (T,...).
        phrase_to_class: T class indices, ascending; each class has at least one phrase.
        num_classes: C.

    Returns:
        (C,...).

    >>> best_of_phrases(torch.tensor([0.2, 0.7, 0.4]), [0, 0, 1], 2)
    tensor([0.7000, 0.4000])
    """
    if len(phrase_to_class) == num_classes:  # one phrase per class: nothing to reduce
        return values
    index = torch.tensor(phrase_to_class, device=values.device).view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    lowest = values.new_full((num_classes, *values.shape[1:]), -torch.inf)
    return lowest.scatter_reduce(0, index, values, "amax")


def image_transform_for(size: tuple[int, int], tower: Tower) -> ImageTransform:
    """The transform that `prepare` applies to a single image.

    Args:
        size: (H,W) of the image.
        tower: gives `divisor` and `input_size`.
    """
    padded = padded_size(size, tower.divisor)
    return ImageTransform(size, padded, padded if tower.input_size is None else (tower.input_size, tower.input_size))


def prepare(images: Sequence[Tensor], tower: Tower) -> tuple[Tensor, list[ImageTransform]]:
    """Normalise images, pad them with the mean colour at the right and the bottom, and stack them into a batch.

    For a tower with a fixed input size, images are also resized to a square of this size.

    Args:
        images: uint8 (3,H,W) each, RGB, any sizes.
        tower: gives `pixel_mean`, `pixel_std`, `divisor`, `input_size`.

    Returns:
        x (B,3,h0,w0) float, normalised; and one `ImageTransform` per image. Without a fixed input size all images are
        padded to the size of the largest image, rounded up to a multiple of `divisor`.

    >>> from types import SimpleNamespace
    >>> mean, std = torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 127.5)
    >>> tower = SimpleNamespace(pixel_mean=mean, pixel_std=std, divisor=32, input_size=None)
    >>> x, (transform,) = prepare([torch.zeros(3, 50, 70, dtype=torch.uint8)], tower)
    >>> tuple(x.shape), transform.size
    ((1, 3, 64, 96), (50, 70))
    """
    normalised = [(image.to(tower.pixel_mean.device).float() - tower.pixel_mean) / tower.pixel_std for image in images]
    sizes = [tuple(image.shape[-2:]) for image in images]
    if tower.input_size is None:
        shared = padded_size((max(h for h, _ in sizes), max(w for _, w in sizes)), tower.divisor)
        transforms = [ImageTransform(size, shared, shared) for size in sizes]
    else:
        transforms = [image_transform_for(size, tower) for size in sizes]
    batch = []
    for image, transform in zip(normalised, transforms):
        x = F.pad(image, (0, transform.padded[1] - transform.size[1], 0, transform.padded[0] - transform.size[0]))[None]
        if transform.prepared != transform.padded:
            x = F.interpolate(x, size=transform.prepared, mode="bilinear", align_corners=False)
        batch.append(x)
    return torch.cat(batch), transforms
