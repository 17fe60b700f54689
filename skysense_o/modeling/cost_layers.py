"""The layers of `CostAggregationHead`: attention over space, attention over phrases, and guided upsampling.

Shape letters: B images, T phrases, t phrases of one chunk, d hidden channels, g guidance channels, e channels per head,
h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skysense_o.modeling.window_attention import window_mask, window_order


class SpatialLayer(nn.Module):
    """Two window-attention blocks over space, the second one shifted, applied to each phrase separately."""

    def __init__(self, dim: int, guidance: int, heads: int, window: int) -> None:
        super().__init__()
        self.guide_norm = nn.LayerNorm(guidance)
        self.blocks = nn.ModuleList(SpatialBlock(dim, guidance, heads, window, shifted) for shifted in (False, True))

    def project_guide(self, guide: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Image guidance (B,g,h,w) -> for each block the terms (B,1,h,w,d) of queries and keys; once per image."""
        guide = self.guide_norm(guide.permute(0, 2, 3, 1))[:, None]
        return [block.project_guide(guide) for block in self.blocks]

    def forward(self, x: Tensor, guide: list[tuple[Tensor, Tensor]]) -> Tensor:
        """(B,t,h,w,d) -> the same shape."""
        for block, added in zip(self.blocks, guide, strict=True):
            x = block(x, added)
        return x


class SpatialBlock(nn.Module):
    """Pre-norm window attention without position bias; queries and keys also get the image guidance."""

    def __init__(self, dim: int, guidance: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k = nn.Linear(dim + guidance, dim), nn.Linear(dim + guidance, dim)
        self.v, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def project_guide(self, guide: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(F.linear(guide, f.weight[:, f.out_features :], f.bias) for f in (self.q, self.k))

    def forward(self, x: Tensor, guide: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self._attend(self.norm1(x), guide)
        return x + self.mlp(self.norm2(x))

    def _attend(self, y: Tensor, guide: tuple[Tensor, Tensor]) -> Tensor:
        """Window attention of (B,t,h,w,d); the map is padded to whole windows and padded tokens are masked."""
        b, t, height, width, d = y.shape
        shift = self.window // 2 if self.shifted and min(height, width) > self.window else 0
        into, back = window_order(height, width, self.window, shift, y.device)
        into = into.where(into < height * width, 0)  # padding is masked, so any token can stand for it
        mask = window_mask(height, width, self.window, shift, True, y.device)
        y = y.reshape(b * t, height * width, d).index_select(1, into).unflatten(0, (b, t))
        q, k = (
            F.linear(y, f.weight[:, : f.out_features]) + added.flatten(2, 3).index_select(2, into)
            for f, added in zip((self.q, self.k), guide, strict=True)
        )
        by_head = (-1, self.window**2, self.heads, d // self.heads)
        windows = [x.reshape(by_head).transpose(1, 2) for x in (q, k, self.v(y))]
        added = None if mask is None else mask[:, None].to(q.dtype).repeat(b * t, 1, 1, 1)
        read = F.scaled_dot_product_attention(*windows, attn_mask=added).transpose(1, 2)
        return self.proj(read.reshape(b * t, -1, d).index_select(1, back)).view(b, t, height, width, d)


class ClassLayer(nn.Module):
    """Linear attention over the phrases, separately at each cell of a map pooled by 2.

    Phrases are padded with copies of a learned token. Its share of the sums is computed once and multiplied by the
    number of copies.
    """

    def __init__(self, dim: int, guidance: int, heads: int, pad_len: int) -> None:
        super().__init__()
        self.heads, self.pad_len = heads, pad_len
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k = nn.Linear(dim + guidance, dim), nn.Linear(dim + guidance, dim)
        self.v = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        if pad_len:
            self.padding_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.padding_guide = nn.Parameter(torch.zeros(1, 1, guidance))

    def sums(
        self, parts: Sequence[Tensor], guides: tuple[Tensor, ...], valids: tuple[Tensor, ...], dropped: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The sums of linear attention over all phrases, in float32 or float64.

        Each chunk of phrases has a part (B,t,h,w,d), a guide (B,t,g) and valid flags (B,t).

        `dropped` phrases are left out, and no padding takes their place.

        Returns:
            sum f(k) v (B,h',w',heads,e,e), and sum f(k) (B,h',w',heads,e).
        """
        values, weights, count = 0, 0, 0
        for part, guide, valid in zip(parts, guides, valids, strict=True):
            key, value = self._key_value(self._pool(part), guide[:, :, None, None])
            key = key * valid[:, :, None, None, None, None]
            values = values + torch.einsum("bthwne,bthwnf->bhwnef", key, value)
            weights, count = weights + key.sum(1), count + valid.sum(1)
        if self.pad_len:
            key, value = self._key_value(self.padding_token, self.padding_guide)  # (1,1,heads,e)
            missing = (self.pad_len - dropped - count).clamp(min=0)[:, None, None, None, None].to(key.dtype)
            values = values + missing[..., None] * torch.einsum("xyne,xynf->xynef", key, value)
            weights = weights + missing * key
        return values, weights

    def forward(self, x: Tensor, guide: Tensor, sums: tuple[Tensor, Tensor]) -> Tensor:
        """(B,t,h,w,d) and (B,t,g) -> the same shape as x."""
        p = self._pool(x)
        query = _positive(self._heads(self._guided(self.q, self.norm1(p), guide[:, :, None, None])))
        total = torch.einsum("bthwne,bhwne->bthwn", query, sums[1]) + 1e-6
        read = torch.einsum("bthwne,bhwnef->bthwnf", query, sums[0]) / total[..., None]
        p = p + read.flatten(-2).to(p.dtype)
        p = p + self.mlp(self.norm2(p))
        up = F.interpolate(p.flatten(0, 1).permute(0, 3, 1, 2), x.shape[2:4], mode="bilinear", align_corners=True)
        return x + up.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def _pool(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2, ceil_mode=True)
        return pooled.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def _key_value(self, p: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm1(p)
        wide = torch.promote_types(y.dtype, torch.float32)  # in bf16, sums over hundreds of phrases are 2 % wrong
        key = _positive(self._heads(self._guided(self.k, y, guide)).to(wide))
        return key, self._heads(self.v(y)).to(wide)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    @staticmethod
    def _guided(linear: nn.Linear, y: Tensor, guide: Tensor) -> Tensor:
        """Linear(cat[y, guide]), where the guide is the same at every cell."""
        dim = linear.out_features
        return F.linear(y, linear.weight[:, :dim]) + F.linear(guide, linear.weight[:, dim:], linear.bias)


class GuidedUp(nn.Module):
    """Upsample by 2 and add detail from the image; the first convolution of the detail is computed once per image."""

    def __init__(self, dim: int, guidance: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim - guidance, 2, stride=2)
        self.conv1 = nn.Conv2d(dim, out, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(max(1, out // 16), out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(max(1, out // 16), out)

    def forward(self, x: Tensor, detail: Tensor, phrases: int) -> Tensor:
        """x (B*t,dim,h,w), detail (B,guidance,2h,2w) -> (B*t,out,2h,2w)."""
        x = self.up(x)
        split = x.shape[1]
        own = F.conv2d(x, self.conv1.weight[:, :split], padding=1).unflatten(0, (-1, phrases))
        shared = F.conv2d(detail, self.conv1.weight[:, split:], padding=1)[:, None]
        x = self.norm1((own + shared).flatten(0, 1)).relu()
        return self.norm2(self.conv2(x)).relu()


def _positive(x: Tensor) -> Tensor:
    return F.elu(x) + 1
