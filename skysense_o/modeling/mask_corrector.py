"""A small network that corrects the mask of a click or box.

Shape letters: B masks, N clicks, C channels, M lists of classes, h w grid. Points and boxes are in cells of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING = 16
"""Channels of the learned embedding in which cells are compared with those under the clicks."""
WIDTHS = (16, 24, 48, 56)
"""Channels of the U-Net at 2, 4, 8 and 16 cells."""
LARGEST = 2.0
"""Logits of the previous mask are clamped to this absolute value, so that the network can change every cell."""
NEAR, NEAREST = 0.08, 0.02
"""Decay lengths of a click's proximity, as shares of the grid's side."""


class MaskCorrector(nn.Module):
    """Predicts how a mask changes after its last click (Sofiiuk et al., Reviving Iterative Training with Mask Guidance,
    2021).

    A U-Net reads the image features, the previous mask, where foreground, background and last clicks are, the inside of
    the box, and how similar each cell is to those under the clicks, and to the inside of the box rather than its
    surroundings: in a learned embedding, and in the class maps.
    """

    def __init__(self, channels: int, lists: int) -> None:
        """
        Args:
            channels: C of the image features.
            lists: M, the number of lists of classes, each with its own class maps.
        """
        super().__init__()
        maps = 12 + 4 * lists
        first, second, third, fourth = WIDTHS
        # Without the norm, all cells have nearly the same direction, and similarities say nothing.
        self.embed = nn.Sequential(nn.InstanceNorm2d(channels), nn.Conv2d(channels, EMBEDDING, 1))
        self.stem = _convolution(EMBEDDING + maps, first, stride=2)
        widths = (first, *WIDTHS)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(widths, WIDTHS))
        self.wide = _convolution(fourth, fourth, dilation=2)
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in ((fourth, third), (third, second), (second, first)))
        self.up = nn.ModuleList(_block(c, c) for c in (third, second, first))
        self.coarse = nn.Conv2d(first, EMBEDDING, 1)
        self.fine = nn.Sequential(nn.Conv2d(EMBEDDING + maps, EMBEDDING, 1), nn.ReLU())
        self.last = nn.Sequential(_convolution(EMBEDDING, EMBEDDING), nn.Conv2d(EMBEDDING, 1, 1))
        nn.init.zeros_(self.last[-1].weight)  # an untrained network changes nothing
        nn.init.zeros_(self.last[-1].bias)

    def forward(
        self,
        embedding: Tensor,
        class_maps: Sequence[Tensor],
        mask: Tensor,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
    ) -> Tensor:
        """
        Args:
            embedding: (I,16,h,w) of I images, from `embed`, each with B / I masks, one image after the other.
            class_maps: M tensors (B,classes,h,w), the share of each class in each cell, 0..1.
            mask: (B,h,w), the logits of the previous mask.
            points: int64 (B,N,2), column and row of the clicked cells, in the order of the clicks.
            labels: (B,N), 1 foreground, 0 background, -1 padding, which comes last.
            boxes: (B,4), half-open XYXY; NaN for none.

        Returns:
            (B,h,w), the logits of the corrected mask.
        """
        if len(mask) > len(embedding):
            embedding = embedding.repeat_interleave(len(mask) // len(embedding), dim=0)
        mask = mask.float().clamp(-LARGEST, LARGEST)
        x = torch.cat([embedding, self._maps(embedding.float(), class_maps, mask, points, labels, boxes)], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        levels = [self.stem(x)]
        for i, block in enumerate(self.down):
            levels.append(block(F.max_pool2d(levels[-1], 2, ceil_mode=True) if i else levels[-1]))
        y = levels.pop()
        y = y + self.wide(y)
        y = y + y.mean((2, 3), keepdim=True)
        for narrow, block in zip(self.narrow, self.up):
            finer = levels.pop()
            y = block(finer + _resized(narrow(y), finer))
        return mask + self.last(self.fine(x) + _resized(self.coarse(y), x))[:, 0].float()

    def _maps(
        self,
        embedding: Tensor,
        class_maps: Sequence[Tensor],
        mask: Tensor,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
    ) -> Tensor:
        """The maps (B,12+4M,h,w) of the previous mask, the clicks and the box."""
        _, label = last_clicks(points, labels)
        sign = torch.where(label >= 0, label * 2.0 - 1, 0.0)[..., None]
        unit = embedding * embedding.square().sum(1, keepdim=True).clamp(min=1e-12).rsqrt()
        side = (mask.shape[-2] * mask.shape[-1]) ** 0.5
        foreground, background, last = (one / side for one in _by_label(-_distances(mask, points), labels))
        maps = [mask / LARGEST, (mask > 0).float(), torch.exp(foreground / NEAR), torch.exp(background / NEAR)]
        maps += [sign * torch.exp(last / decay) for decay in (NEAR, NEAREST)]
        alike = [_by_label(_likeness(features, points), labels) for features in (*class_maps, unit)]
        alike = [[one.masked_fill(one == -torch.inf, 0.0) for one in three] for three in alike]
        alike = [[*(one.clamp(min=0) for one in three[:2]), sign * three[2]] for three in alike]
        inside = _inside(mask, boxes)
        around = _inside(mask, _enlarged(boxes)) * (1 - inside)
        maps += [
            *chain(*alike[:-1]),
            inside,
            (~boxes.isnan().any(1)).float()[:, None, None].expand_as(mask),
            *alike[-1],
        ]
        maps += [_contrast(features, inside, around) for features in (*class_maps, unit)]
        return torch.stack(maps, dim=1)


def _convolution(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(before, after), *_convolution(after, after))


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def last_clicks(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The last click of each mask: (B,1,2), and its label (B,1), -1 without clicks. Arguments: see `MaskCorrector`."""
    last = ((labels >= 0).sum(1, keepdim=True) - 1).clamp(min=0)
    rows = torch.arange(len(points), device=points.device)[:, None]
    return points[rows, last], labels[rows, last]


def nearness(mask: Tensor, points: Tensor, given: Tensor) -> Tensor:
    """(B,h,w): exp(-distance / decay length) of the nearest of some clicks; 0 without clicks.

    points: (B,N,2); given: bool (B,N), which of them count.
    """
    side = (mask.shape[-2] * mask.shape[-1]) ** 0.5
    distances = _distances(mask, points).masked_fill(~given[..., None, None], torch.inf)
    return torch.exp(-distances.amin(1) / (NEAR * side))


def _distances(mask: Tensor, points: Tensor) -> Tensor:
    """(B,N,h,w): the distance of each cell from each click."""
    x, y = (points[..., i, None, None].float() for i in (0, 1))
    rows = torch.arange(mask.shape[-2], device=mask.device)[:, None]
    columns = torch.arange(mask.shape[-1], device=mask.device)
    return torch.hypot(rows - y, columns - x)


def _likeness(features: Tensor, points: Tensor) -> Tensor:
    """(B,N,h,w): the product of a cell's features (B,C,h,w) and the unit vector of those around each click."""
    vectors = _around(features, points)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=0.1)
    return torch.einsum("bnc,bchw->bnhw", vectors, features)


def _by_label(values: Tensor, labels: Tensor) -> list[Tensor]:
    """The largest of values (B,N,h,w) over foreground clicks, over background clicks, and that of the last click, each
    (B,h,w), -inf without such a click."""
    last = torch.arange(labels.shape[1], device=labels.device) == (labels >= 0).sum(1, keepdim=True) - 1
    kinds = (labels == 1, labels == 0, last)
    return [values.masked_fill(~these[..., None, None], -torch.inf).amax(1) for these in kinds]


def _around(features: Tensor, points: Tensor) -> Tensor:
    """(B,N,C): the mean of the features (B,C,h,w) of the clicked cells and their neighbours in the grid."""
    height, width = features.shape[-2:]
    step = torch.tensor([-1, 0, 1], device=points.device)
    x, y = points[..., 0, None, None] + step, points[..., 1, None, None] + step[:, None]
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).to(features.dtype)
    rows = torch.arange(len(points), device=points.device)[:, None, None, None]
    found = features[rows, :, y.clamp(0, height - 1), x.clamp(0, width - 1)]
    return (found * inside[..., None]).sum((2, 3)) / inside.sum((2, 3))[..., None]


def _inside(mask: Tensor, boxes: Tensor) -> Tensor:
    """(B,h,w): 1 in the cells that a box touches, 0 in others; 0 without a box."""
    x0, y0, x1, y1 = (boxes[:, i, None, None] for i in range(4))
    rows = torch.arange(mask.shape[-2], device=mask.device)[:, None]
    columns = torch.arange(mask.shape[-1], device=mask.device)
    return ((rows + 1 > y0) & (rows < y1) & (columns + 1 > x0) & (columns < x1)).float()


def _enlarged(boxes: Tensor) -> Tensor:
    """Boxes (B,4) with twice the sides and the same centres."""
    sides = (boxes[:, 2:] - boxes[:, :2]) / 2
    return torch.cat([boxes[:, :2] - sides, boxes[:, 2:] + sides], dim=1)


def _contrast(features: Tensor, inside: Tensor, around: Tensor) -> Tensor:
    """(B,h,w): how much more a cell is like the inside of a box than like its surroundings; 0 without a box.

    It is the product of the cell's features (B,C,h,w) and the unit vector from the mean around the box to that inside.
    """
    if not inside.any():
        return inside
    parts = (part / part.sum((1, 2), keepdim=True).clamp(min=1) for part in (inside, around))
    means = [torch.einsum("bchw,bhw->bc", features, part) for part in parts]
    vector = means[0] - means[1]
    return torch.einsum("bchw,bc->bhw", features, vector / vector.norm(dim=1, keepdim=True).clamp(min=0.1))
