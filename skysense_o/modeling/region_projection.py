"""Region features as the published code computes them.

Shape letters: B images, D embedding, T classes, h w grid, s upscaling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skysense_o.sample import IGNORE


class RegionProjection(nn.Module):
    """Sums the map conv1(pixel_shuffle(conv0(dense), s)) under each mask without computing the map.

    The published code computes the map, of size 1024 x 384 x 384, and sums it under each mask. Sums and both
    convolutions are linear, so here the masks are summed first, per position inside a cell, with the same result.
    """

    def __init__(self, dim: int, upscale: int) -> None:
        """
        Args:
            dim: embedding size D.
            upscale: s, label pixels per grid cell in each direction (published: 16, with 269.7 M parameters).
        """
        super().__init__()
        self.upscale = upscale
        self.expand = nn.Conv2d(dim, dim * upscale**2, 1)
        self.mix = nn.Conv2d(dim, dim, 1)

    def forward(self, dense: Tensor, sem_seg: Tensor, num_classes: int) -> Tensor:
        """Compute the features of each class's region.

        Args:
            dense: (B,D,h,w).
            sem_seg: int64 (B,hs,ws), class indices or IGNORE.
            num_classes: T.

        Returns:
            (B,T,D): the sum of the map under the mask of each class; zero for a class that is not in the image.

        Raises:
            ValueError: the labels are not exactly s times as large as the grid.
        """
        b, d, h, w = dense.shape
        s = self.upscale
        if sem_seg.shape != (b, h * s, w * s):
            raise ValueError(
                f"labels {tuple(sem_seg.shape[1:])} on a grid of {(h, w)}: the published region map needs exactly {s}"
                " pixels per cell; set MODEL.LOSS.REGION_UPSCALE to their ratio, or 0 for none"
            )
        weight, bias = self.expand.weight.view(d, s, s, d), self.expand.bias.view(d, s, s)
        regions = dense.new_zeros((b, num_classes, d))
        for image, labels, row in zip(dense, sem_seg, range(b)):
            ids = labels.unique()
            ids = ids[(ids != IGNORE) & (ids < num_classes)]
            masks = (labels == ids[:, None, None]).to(dense.dtype).view(len(ids), h, s, w, s)
            summed = torch.einsum("tyixj,dyx->tijd", masks, image)
            area = masks.sum((1, 3))  # (T',s,s)
            z = torch.einsum("tijd,cijd->tc", summed, weight) + torch.einsum("tij,cij->tc", area, bias)
            pooled = z @ self.mix.weight[:, :, 0, 0].T + self.mix.bias * area.sum((1, 2))[:, None]
            regions = regions.index_put((torch.tensor(row, device=ids.device), ids), pooled)
        return regions
