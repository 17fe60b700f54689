"""From images to the model's input and back. Alphabet: B images, T phrases, C classes, H W pixels, h w grid.

Each step has its inverse here, undone in reverse: normalise and pad (and, for a tower of fixed input, squeeze) in
`prepare`; unsqueeze, cut the padding and resize in `ImageTransform.restore`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from skysense_o.sample import Reduce

if TYPE_CHECKING:
    from skysense_o.modeling.tower import Tower

RESTORE_BYTES = 256 * 2**20
"""Memory that one chunk of full-size masks may take while masks are restored."""


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """The next (height, width) that `divisor` divides."""
    return tuple(-(-side // divisor) * divisor for side in size)


@dataclass(frozen=True)
class ImageTransform:
    """How one image was prepared, and the way back.

    size: (H,W) of the image; padded: its (H,W) after padding right and below; prepared: the (h0,w0) the tower sees,
    equal to `padded` unless the tower squeezes to a fixed square.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    prepared: tuple[int, int]

    def points(self, xy: Tensor) -> Tensor:
        """Original pixels (...,2) x,y -> prepared pixels. Pixel i covers [i, i+1): its centre is i + 0.5."""
        scale = [p / q for p, q in zip(self.prepared[::-1], self.padded[::-1])]
        return (xy + 0.5) * xy.new_tensor(scale) - 0.5

    def restore(
        self,
        logits: Tensor,
        phrase_to_class: Sequence[int],
        num_classes: int,
        size: tuple[int, int] | None = None,
        reduce: Reduce = "labels",
        reference_compat: bool = False,
    ) -> dict[str, Tensor]:
        """Bring the logits of phrases back to the image as the probabilities of names.

        Sigmoid, maximum over the phrases of each class, resize over the padding, cut it, resize to `size`. Classes go
        through in chunks, so memory does not grow with classes times pixels unless all probabilities are asked for.

        Args:
            logits: (T,h',w') of the valid phrases, on any grid that covers the prepared image.
            phrase_to_class: T numbers, ascending: the name each phrase belongs to.
            classes: C, how many names there are.
            size: (height, width) wanted; the image's own where None.
            reference_compat: leave the padding in, stretched over the image, as the published code does.
            reduce: "labels" -> {"labels": int64 (H,W), "score": (H,W)}; "probabilities" -> {"sem_seg": (C,H,W)}.
        """

        def grid(first: int, last: int) -> Tensor:
            start, stop = bisect_left(phrase_to_class, first), bisect_left(phrase_to_class, last)
            classes = [c - first for c in phrase_to_class[start:stop]]
            return best_of_phrases(logits[start:stop].float().sigmoid(), classes, last - first)

        return self._restore(grid, num_classes, size or self.size, reduce, reference_compat)

    def restore_probabilities(
        self, grid: Tensor, size: tuple[int, int] | None = None, reduce: Reduce = "labels"
    ) -> dict[str, Tensor]:
        """As `restore`, of probabilities of classes (C,h',w') instead of logits of phrases."""
        return self._restore(lambda first, last: grid[first:last], len(grid), size or self.size, reduce)

    def _restore(
        self,
        grid: Callable[[int, int], Tensor],
        num_classes: int,
        size: tuple[int, int],
        reduce: Reduce,
        reference_compat: bool = False,
    ) -> dict[str, Tensor]:
        """grid: first and last class (not included) -> their probabilities (C,h',w')."""
        height, width = size
        chunk = max(1, RESTORE_BYTES // (4 * max(self.padded[0] * self.padded[1], height * width)))
        maps, best, labels = [], None, None
        for first in range(0, num_classes, chunk):
            full = self._to_image(grid(first, min(first + chunk, num_classes)), (height, width), reference_compat)
            if reduce == "probabilities":
                maps.append(full)
                continue
            score, index = full.max(dim=0)
            if best is None:
                best, labels = score, index
            else:
                better = score > best
                best = torch.where(better, score, best)
                labels = torch.where(better, index + first, labels)
        return {"sem_seg": torch.cat(maps)} if reduce == "probabilities" else {"labels": labels, "score": best}

    def _to_image(self, grid: Tensor, size: tuple[int, int], reference_compat: bool) -> Tensor:
        """(C,h',w') over the padded image -> (C,height,width) over the image."""
        if reference_compat:
            cut = grid[None, :, : self.size[0], : self.size[1]]  # of the grid, where pixels were meant
            return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)[0]
        scaled = [p * out / side for p, out, side in zip(self.padded, size, self.size)]
        if all(side.is_integer() for side in scaled):
            full = F.interpolate(grid[None], size=[int(side) for side in scaled], mode="bilinear", align_corners=False)
            return full[0, :, : size[0], : size[1]]
        # The padding ends inside an output pixel: the same sampling at the same places, only slower.
        y, x = (
            (torch.arange(out, device=grid.device, dtype=grid.dtype) + 0.5) * (2 / end) - 1
            for out, end in zip(size, scaled)
        )
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        return F.grid_sample(grid[None], places, mode="bilinear", padding_mode="border", align_corners=False)[0]


def best_of_phrases(values: Tensor, phrase_to_class: Sequence[int], num_classes: int) -> Tensor:
    """(T,...) of phrases -> (C,...) of names: the maximum over each name's phrases, of which each has one at least."""
    if len(phrase_to_class) == num_classes:  # one phrase a name: nothing to reduce
        return values
    index = torch.tensor(phrase_to_class, device=values.device).view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    least = values.new_full((num_classes, *values.shape[1:]), -torch.inf)
    return least.scatter_reduce(0, index, values, "amax")


def image_transform_for(size: tuple[int, int], tower: Tower) -> ImageTransform:
    """The frame in which `tower` sees an image of `size` (H,W) when it comes alone."""
    padded = padded_size(size, tower.divisor)
    return ImageTransform(size, padded, padded if tower.input_size is None else (tower.input_size, tower.input_size))


def prepare(images: Sequence[Tensor], tower: Tower) -> tuple[Tensor, list[ImageTransform]]:
    """Normalise, pad right and below with the mean colour, squeeze where the tower asks for it, and stack.

    Args:
        images: uint8 (3,H,W) each, RGB, any sizes.
        tower: gives `pixel_mean`, `pixel_std`, `divisor`, `input_size`.

    Returns:
        x (B,3,h0,w0) float, normalised; one `ImageTransform` per image. Without a fixed input size all
        images share the padded size of the largest.
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
