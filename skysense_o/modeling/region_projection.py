"""The published code's own map of regions, at the labels' resolution. D embedding, T classes, h w grid, s upscaling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skysense_o.sample import IGNORE


class RegionProjection(nn.Module):
    """Pools region features out of the map conv1(pixel_shuffle(conv0(dense), s)) without making it.

    The published code makes that map, 1024 x 384 x 384 numbers, to take sums under masks. Sums and both convolutions
    are linear, so the masks are summed first, by the place inside a cell: the same numbers.
    """

    def __init__(self, dim: int, upscale: int) -> None:
        """dim: D. upscale: s, pixels of a label a cell (published: 16, and 269.7 M parameters)."""
        super().__init__()
        self.upscale = upscale
        self.expand = nn.Conv2d(dim, dim * upscale**2, 1)
        self.mix = nn.Conv2d(dim, dim, 1)

    def forward(self, dense: Tensor, sem_seg: Tensor, num_classes: int) -> Tensor:
        """
        Args:
            dense: (B,D,h,w). sem_seg: (B,hs,ws) int64, index of a name or IGNORE. names: T.

        Returns:
            (B,T,D): the sum of the map under each name's mask, zero for a name that is not in the image.
        """
        b, d, h, w = dense.shape
        s = self.upscale
        if sem_seg.shape != (b, h * s, w * s):
            raise ValueError(
                f"labels {tuple(sem_seg.shape[1:])} on a grid of {(h, w)}: the published region map needs exactly {s}"
                " pixels a cell; set MODEL.LOSS.REGION_UPSCALE to their ratio, or 0 for none"
            )
        weight, bias = self.expand.weight.view(d, s, s, d), self.expand.bias.view(d, s, s)
        regions = dense.new_zeros((b, num_classes, d))
        for image, labels, row in zip(dense, sem_seg, range(b)):
            found = labels.unique()
            found = found[(found != IGNORE) & (found < num_classes)]
            masks = (labels == found[:, None, None]).to(dense.dtype).view(len(found), h, s, w, s)
            summed = torch.einsum("tyixj,dyx->tijd", masks, image)
            area = masks.sum((1, 3))  # (T',s,s)
            z = torch.einsum("tijd,cijd->tc", summed, weight) + torch.einsum("tij,cij->tc", area, bias)
            pooled = z @ self.mix.weight[:, :, 0, 0].T + self.mix.bias * area.sum((1, 2))[:, None]
            regions = regions.index_put((torch.tensor(row, device=found.device), found), pooled)
        return regions
