"""Encode clicks and boxes as tokens and as maps.

Shape letters: B images, K prompts per image, N points per prompt, N' points and box corners per prompt, M tokens per
prompt, h' w' grid of the masks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn

from skysense_o.modeling.decoder import Queries

INSIDE, CORNER = 1, 2  # rows of `kind`: 0 background point, 1 foreground point, 2 and 3 corners of a box
NEAR = 0.1  # decay length of a click's proximity map, as a fraction of the image's sides
NEARNESS, LIKENESS = 3, 3  # number of proximity maps and of similarity maps
LOOK, MIX = 24, 16  # channels of the appearance features, and of the final convolutions


class PromptEncoder(nn.Module):
    """Encodes points and boxes as in Segment Anything (Kirillov et al. 2023), plus maps of location and appearance.

    Tokens: one learned mask token, then for each point and box corner its position encoding plus its kind embedding.

    In Segment Anything the prompt also changes the image features. Here the image is refined once for all queries.
    Instead each prompt has maps of its own: its location, the inside of the box, the proximity of foreground and
    background clicks, and the similarity to the features under the prompt. For each prompt a few convolutions turn its
    maps into values that are added to its mask logits.
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
        """Encode the prompts as tokens.

        Args:
            queries: with K prompts per image.
            size: (h0,w0) of the prepared image.
            position: the position encoding of the head, which gives a click and the cell under it the same code.

        Returns:
            tokens (B,K,M,width), the mask token first; mask (B,K,M) bool, False for padding.
        """
        xy, kinds = _points(queries)
        b, k, n = kinds.shape
        code = position.forward_with_coords(xy.flatten(0, 1) + 0.5, size).view(b, k, n, -1)
        points = code.to(self.kind.weight.dtype) + self.kind(kinds.clamp(min=0))
        tokens = torch.cat([self.token.weight.expand(b, k, 1, -1), points], dim=2)
        mask = torch.cat([kinds.new_ones((b, k, 1), dtype=torch.bool), kinds >= 0], dim=2)
        return torch.where(mask[..., None], tokens, 0.0), mask

    def appearance(self, canvas: Tensor) -> Tensor:
        """Features (B,width/8,h',w') of the refined image -> unit vectors (B,c,h',w') to compare with."""
        return F.normalize(self.look(canvas), dim=1, eps=1e-6)

    def draw(
        self,
        drawn: Tensor,
        token: Tensor,
        queries: Queries,
        size: tuple[int, int],
        look: Tensor,
        position: PositionEmbeddingRandom,
    ) -> Tensor:
        """Correct mask logits by the location of the prompts and the appearance under them.

        Args:
            drawn: mask logits (B,K,h',w') from the tokens alone.
            token: (B,K,width) mask token, after attention.
            look: (B,c,h',w'), see `appearance`.
            queries, size, position: see `tokens`.

        Returns:
            logits (B,K,h',w').
        """
        grid = look.shape[-2:]
        weights = self.place(token)
        where = _where(weights[..., :-NEARNESS], position, grid)
        near = _nearness(queries, size, grid, weights)
        drawn = drawn + where + torch.einsum("bkm,bkmhw->bkhw", weights[..., -NEARNESS:], near)
        maps = torch.cat([drawn[:, :, None], near, _likeness(look, near, queries, size)], dim=2)
        return drawn + self.mix(maps.flatten(0, 1)).view_as(drawn)


def _where(weights: Tensor, position: PositionEmbeddingRandom, grid: tuple[int, int]) -> Tensor:
    """Product of weights (B,K,2J) and the position encoding of each cell, divided by sqrt(2J): (B,K,h',w').

    The encoding of a cell is the sines, then the cosines of J angles a_x + a_y. By the formulas for sin(a + b)
    and cos(a + b), the product is a matrix product over J of a factor per row and a factor per column, so the encoding
    (2J,h',w') is never built.
    """
    frequencies = position.positional_encoding_gaussian_matrix
    a_x, a_y = (
        2 * math.pi * ((torch.arange(side, device=frequencies.device) + 0.5) * (2 / side) - 1)[:, None] * f
        for side, f in zip(grid[::-1], frequencies)
    )
    of_sin, of_cos = (w[:, :, None] for w in weights.chunk(2, dim=-1))
    sin, cos = a_y.sin().to(weights.dtype), a_y.cos().to(weights.dtype)
    rows = torch.cat([of_sin * cos - of_cos * sin, of_sin * sin + of_cos * cos], dim=-1)
    columns = torch.cat([a_x.sin(), a_x.cos()], dim=-1).to(weights.dtype)
    return rows @ columns.T / weights.shape[-1] ** 0.5


def _points(queries: Queries) -> tuple[Tensor, Tensor]:
    """The points, then the first and the last pixel of the box: (B,K,N',2), and kinds (B,K,N'), -1 for padding."""
    xy, kinds = [], []
    if queries.points is not None:
        xy.append(queries.points)
        kinds.append(queries.labels)
    if queries.boxes is not None:
        present = ~queries.boxes.isnan().any(-1, keepdim=True)
        first_and_last = queries.boxes - queries.boxes.new_tensor([0, 0, 1, 1])  # the two corner pixels, as in training
        xy.append(first_and_last.nan_to_num().unflatten(-1, (2, 2)))
        corners = torch.arange(CORNER, CORNER + 2, device=present.device).expand(*present.shape[:2], 2)
        kinds.append(torch.where(present, corners, -1))
    return torch.cat(xy, dim=2).float(), torch.cat(kinds, dim=2)


def _nearness(queries: Queries, size: tuple[int, int], grid: tuple[int, int], like: Tensor) -> Tensor:
    """Maps (B,K,3,h',w'): 1 inside the box and -1 outside (0 without a box); proximity of the nearest foreground click,
    exp(-distance), and of the nearest background click.
    """
    xy, kinds = _points(queries)
    scale = xy.new_tensor([size[1], size[0]])
    xy = (xy + 0.5) / scale
    y, x = ((torch.arange(side, device=xy.device) + 0.5) / side for side in grid)
    squared = (xy[..., 0, None, None] - x) ** 2 + (xy[..., 1, None, None] - y[:, None]) ** 2  # (B,K,N',h',w')
    near = torch.exp(-squared.sqrt() / NEAR)
    maps = [torch.where((kinds == kind)[..., None, None], near, 0.0).amax(2) for kind in (INSIDE, 0)]
    if queries.boxes is None:
        box = torch.zeros_like(maps[0])
    else:
        low = (queries.boxes[..., :2] / scale)[..., None, None]
        high = (queries.boxes[..., 2:] / scale)[..., None, None]
        within = (
            (low[:, :, 0] <= x) & (x <= high[:, :, 0]) & (low[:, :, 1] <= y[:, None]) & (y[:, None] <= high[:, :, 1])
        )
        present = ~queries.boxes.isnan().any(-1)
        box = torch.where(present[..., None, None], within.to(near.dtype) * 2 - 1, 0.0)
    return torch.stack([box, *maps], dim=2).to(like.dtype)


def _likeness(look: Tensor, near: Tensor, queries: Queries, size: tuple[int, int]) -> Tensor:
    """Maps of cosine similarity (B,K,3,h',w') to the features under the foreground clicks (maximum over clicks), under
    the background clicks, and to their mean inside the box; 0 without such a click or a box.

    Args:
        look: (B,c,h',w') unit vectors.
        near: (B,K,3,h',w'), see `_nearness`.
    """
    xy, kinds = _points(queries)
    locations = (xy + 0.5) / xy.new_tensor([size[1], size[0]]) * 2 - 1
    under = F.grid_sample(look, locations.to(look.dtype), padding_mode="border", align_corners=False)  # (B,c,K,N')
    cosines = torch.einsum("bckn,bchw->bknhw", F.normalize(under, dim=1, eps=1e-6), look)
    none = kinds.new_tensor(-2.0, dtype=look.dtype)
    maps = []
    for kind in (INSIDE, 0):
        best = torch.where((kinds == kind)[..., None, None], cosines, none).amax(2)
        maps.append(torch.where((kinds == kind).any(2)[..., None, None], best, 0.0))
    mean = F.normalize(torch.einsum("bkhw,bchw->bkc", near[:, :, 0].clamp(min=0), look), dim=-1, eps=1e-6)
    return torch.stack([*maps, torch.einsum("bkc,bchw->bkhw", mean, look)], dim=2)
