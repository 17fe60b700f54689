"""Clicks and boxes as tokens and as maps. Alphabet: B images, K queries, N points, M tokens a query, h' w' grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn

from skysense_o.modeling.decoder import Queries

INSIDE, CORNER = 1, 2  # rows of the point embedding: 0 outside, 1 inside, 2 and 3 the corners of a box
NEAR = 0.1  # reach of a click, as a share of the image's sides
NEARNESS, LIKENESS = 3, 3  # maps of each
LOOK, MIX = 24, 16  # channels of what likeness is told by, and of the drawing's last steps


class PromptEncoder(nn.Module):
    """Points and boxes as Segment Anything encodes them, position plus kind (Kirillov et al. 2023), behind one learned
    token that becomes the mask.

    There a prompt changes the image before the mask is read from it. Here the image is refined once for all queries, so
    a query brings maps along as well: where it is (its position, inside the box, near a click inside, near one outside)
    and what looks like what it points at. A few convolutions, each query by itself, make one mask of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(1, width)
        self.kind = nn.Embedding(4, width)
        self.place = MLP(width, width, width + NEARNESS, 2)
        self.look = nn.Sequential(nn.Conv2d(width // 8, LOOK, 3, padding=1), nn.GELU(), nn.Conv2d(LOOK, LOOK, 1))
        layers, channels = [], 1 + NEARNESS + LIKENESS
        for reach in (1, 2, 4):
            layers += [nn.Conv2d(channels, MIX, 3, padding=reach, dilation=reach), nn.GELU()]
            channels = MIX
        self.mix = nn.Sequential(*layers, nn.Conv2d(MIX, 1, 1))

    def tokens(
        self, queries: Queries, size: tuple[int, int], position: PositionEmbeddingRandom
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            queries: with K prompts in pixels of the prepared image, whose (h0,w0) is `size`.
            position: of the head, so that a click and the cell under it have the same code.

        Returns:
            tokens (B,K,M,width), the learned one first; given (B,K,M) bool, False: padding, that nothing reads.
        """
        xy, kinds = _points(queries)
        b, k, n = kinds.shape
        code = position.forward_with_coords(xy.flatten(0, 1) + 0.5, size).view(b, k, n, -1)
        points = code.to(self.kind.weight.dtype) + self.kind(kinds.clamp(min=0))
        tokens = torch.cat([self.token.weight.expand(b, k, 1, -1), points], dim=2)
        given = torch.cat([kinds.new_ones((b, k, 1), dtype=torch.bool), kinds >= 0], dim=2)
        return torch.where(given[..., None], tokens, 0.0), given

    def draw(
        self,
        drawn: Tensor,
        token: Tensor,
        queries: Queries,
        size: tuple[int, int],
        canvas: Tensor,
        position: PositionEmbeddingRandom,
    ) -> Tensor:
        """Logits of what the tokens mean -> logits (B,K,h',w') of that, at the right place and of the right look.

        Args:
            drawn: (B,K,h',w'). token: (B,K,width), read. canvas: (B,width/8,h',w') of the refined image.
            queries, size, position: as in `tokens`.
        """
        grid = canvas.shape[-2:]
        weights, code = self.place(token), position(grid)
        where = torch.einsum("bkc,chw->bkhw", weights[..., :-NEARNESS], code.to(weights.dtype)) / code.shape[0] ** 0.5
        near = _nearness(queries, size, grid, weights)
        drawn = drawn + where + torch.einsum("bkm,bkmhw->bkhw", weights[..., -NEARNESS:], near)
        maps = torch.cat([drawn[:, :, None], near, _likeness(self.look(canvas), near, queries, size)], dim=2)
        return drawn + self.mix(maps.flatten(0, 1)).view_as(drawn)


def _points(queries: Queries) -> tuple[Tensor, Tensor]:
    """(B,K,N',2) places and (B,K,N') kinds, -1 where there is none: the points, then the corners of the box."""
    xy, kinds = [], []
    if queries.points is not None:
        xy.append(queries.points)
        kinds.append(queries.labels)
    if queries.boxes is not None:
        there = ~queries.boxes.isnan().any(-1, keepdim=True)
        first_and_last = queries.boxes - queries.boxes.new_tensor([0, 0, 1, 1])  # the weights were trained on these
        xy.append(first_and_last.nan_to_num().unflatten(-1, (2, 2)))
        corners = torch.arange(CORNER, CORNER + 2, device=there.device).expand(*there.shape[:2], 2)
        kinds.append(torch.where(there, corners, -1))
    return torch.cat(xy, dim=2).float(), torch.cat(kinds, dim=2)


def _nearness(queries: Queries, size: tuple[int, int], grid: tuple[int, int], like: Tensor) -> Tensor:
    """(B,K,3,h',w'): 1 in the box and -1 around it (0: no box); 1 at a click inside, falling off; the same outside."""
    xy, kinds = _points(queries)
    scale = xy.new_tensor([size[1], size[0]])
    xy = (xy + 0.5) / scale
    y, x = ((torch.arange(side, device=xy.device) + 0.5) / side for side in grid)
    far = (xy[..., 0, None, None] - x) ** 2 + (xy[..., 1, None, None] - y[:, None]) ** 2  # (B,K,N',h',w')
    near = torch.exp(-far.sqrt() / NEAR)
    maps = [torch.where((kinds == kind)[..., None, None], near, 0.0).amax(2) for kind in (INSIDE, 0)]
    if queries.boxes is None:
        box = torch.zeros_like(maps[0])
    else:
        low = (queries.boxes[..., :2] / scale)[..., None, None]
        high = (queries.boxes[..., 2:] / scale)[..., None, None]
        within = (
            (low[:, :, 0] <= x) & (x <= high[:, :, 0]) & (low[:, :, 1] <= y[:, None]) & (y[:, None] <= high[:, :, 1])
        )
        there = ~queries.boxes.isnan().any(-1)
        box = torch.where(there[..., None, None], within.to(near.dtype) * 2 - 1, 0.0)
    return torch.stack([box, *maps], dim=2).to(like.dtype)


def _likeness(look: Tensor, near: Tensor, queries: Queries, size: tuple[int, int]) -> Tensor:
    """(B,K,3,h',w') cosines with what is under the clicks inside (the best of them), under those outside, and with the
    mean of the box; 0 where there is none.

    look: (B,c,h',w'). near: (B,K,3,h',w'), see `_nearness`.
    """
    look = F.normalize(look, dim=1, eps=1e-6)
    xy, kinds = _points(queries)
    places = (xy + 0.5) / xy.new_tensor([size[1], size[0]]) * 2 - 1
    under = F.grid_sample(look, places.to(look.dtype), padding_mode="border", align_corners=False)  # (B,c,K,N')
    cosines = torch.einsum("bckn,bchw->bknhw", F.normalize(under, dim=1, eps=1e-6), look)
    none = kinds.new_tensor(-2.0, dtype=look.dtype)
    maps = []
    for kind in (INSIDE, 0):
        best = torch.where((kinds == kind)[..., None, None], cosines, none).amax(2)
        maps.append(torch.where((kinds == kind).any(2)[..., None, None], best, 0.0))
    mean = F.normalize(torch.einsum("bkhw,bchw->bkc", near[:, :, 0].clamp(min=0), look), dim=-1, eps=1e-6)
    return torch.stack([*maps, torch.einsum("bkc,bchw->bkhw", mean, look)], dim=2)
