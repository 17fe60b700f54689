"""The Swin V2 image encoder of SkySense (Liu et al. 2022, with the differences that the published weights need).

Shape letters: B images, H W tokens of a map, C channels, h heads, M windows per image, N tokens per window. Maps are
(B,H,W,C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from skysense_o.modeling.packed import linear
from skysense_o.modeling.weight_cache import WeightCache
from skysense_o.modeling.window_attention import window_mask, window_order

MAX_LOG_SCALE = math.log(100)


class SwinV2(nn.Module):
    """Four stages at strides 4, 8, 16 and 16; the last stage doubles the channels without merging tokens."""

    def __init__(
        self,
        *,
        dim: int = 352,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (8, 16, 32, 64),
        windows: Sequence[int] = (8, 8, 8, 16),
        pretrained_windows: Sequence[int] = (0, 0, 0, 8),
        extra_norm_every: int = 6,
        drop_path: float = 0.2,
    ) -> None:
        """
        Args:
            dim: channels of the first stage; each stage doubles them.
            depths, heads, windows: number of blocks, number of attention heads and window side, per stage.
            pretrained_windows: window side for which the position bias was trained, per stage; 0: as `windows`.
            extra_norm_every: every n-th block of a stage has a third norm.
            drop_path: stochastic depth rate of the last block; it grows linearly from 0 at the first block.
        """
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        blocks = sum(depths)
        self.channels = tuple(dim * 2**s for s in range(len(depths)))
        self.stages = nn.ModuleList(
            Stage(
                channels,
                depths[s],
                heads[s],
                windows[s],
                pretrained_windows[s],
                extra_norm_every,
                [drop_path * i / (blocks - 1) for i in range(sum(depths[:s]), sum(depths[: s + 1]))],
                merge=None if s == 0 else TokenMerge(channels // 2, keep_size=s == len(depths) - 1),
            )
            for s, channels in enumerate(self.channels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B,3,H,W) normalised, any size -> the output of each stage after its norm, (B,C_s,H_s,W_s)."""
        x, maps = self.patch_embed(x), []
        for stage, norm in zip(self.stages, self.norms):
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2))
        return maps


class PatchEmbed(nn.Module):
    """Embed patches of 4 x 4 pixels as tokens; the image is zero-padded to whole patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection, self.norm = nn.Conv2d(3, dim, 4, stride=4), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        return self.norm(self.projection(x).permute(0, 2, 3, 1))


class TokenMerge(nn.Module):
    """C -> 2C channels, followed by a norm.

    Merges 2 x 2 tokens; the weight's columns are ordered by channel, then token, the reverse of Swin. With `keep_size`
    each token is repeated four times instead, which equals a linear map whose groups of four columns are summed.
    """

    def __init__(self, dim: int, keep_size: bool) -> None:
        super().__init__()
        self.keep_size = keep_size
        self.reduction, self.norm = nn.Linear(4 * dim, 2 * dim, bias=False), nn.LayerNorm(2 * dim)
        self._summed = WeightCache()

    def forward(self, x: Tensor) -> Tensor:
        if self.keep_size:
            weight = self.reduction.weight
            return self.norm(F.linear(x, self._summed(lambda: weight.unflatten(1, (-1, 4)).sum(-1), [weight])))
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2)).permute(0, 3, 1, 2)
        return self.norm(self.reduction(F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1)))


class Stage(nn.Module):
    """An optional merge, then blocks; every second block has shifted windows."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        window: int,
        pretrained_window: int,
        extra_norm_every: int,
        drop_path: Sequence[float],
        merge: TokenMerge | None,
    ) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = nn.ModuleList(
            Block(
                dim,
                WindowAttention(dim, heads, window, pretrained_window),
                shift=window // 2 if i % 2 else 0,
                extra_norm=(i + 1) % extra_norm_every == 0,
                drop_path=drop_path[i],
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.merge is None else self.merge(x)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """x + norm(attention(x)), then x + norm(mlp(x)) (res-post-norm).

    Stochastic depth comes before the norm, as in the published code, so a dropped branch still adds the norm's bias.
    """

    def __init__(self, dim: int, attn: WindowAttention, shift: int, extra_norm: bool, drop_path: float) -> None:
        super().__init__()
        self.attn, self.shift, self.drop_path = attn, shift, DropPath(drop_path)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.norm3 = nn.LayerNorm(dim) if extra_norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.drop_path(self.attn(x, self.shift)))
        x = x + self.norm2(self.drop_path(self.mlp(x)))
        return x if self.norm3 is None else self.norm3(x)


class WindowAttention(nn.Module):
    """Cosine attention with a learned scale and a continuous position bias (Swin V2, equations 2 and 3)."""

    def __init__(self, dim: int, heads: int, window: int, pretrained_window: int) -> None:
        super().__init__()
        self.heads, self.window, self.pretrained_window = heads, window, pretrained_window or window
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.position_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        self._bias = WeightCache()

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """Window attention on a map (B,H,W,C), shifted by `shift` tokens; returns the same shape.

        As in the published code, padded tokens are not masked. They are zero, so the linear layer runs on real tokens
        only, and the layer's bias is the result for padded tokens.
        """
        (height, width), n = x.shape[1:3], self.window**2
        shift = shift if min(height, width) > self.window else 0
        into, back = window_order(height, width, self.window, shift, x.device)
        mask = window_mask(height, width, self.window, shift, False, x.device)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        tokens = x.flatten(1, 2)
        if len(into) == len(back):
            qkv = linear(self.qkv, tokens.index_select(1, into), bias)
        else:
            qkv = linear(self.qkv, tokens, bias)
            qkv = torch.cat([qkv, bias.to(qkv.dtype).expand(len(qkv), 1, -1)], dim=1).index_select(1, into)
        read = self._in_windows(qkv.unflatten(1, (-1, n)).flatten(0, 1), mask).unflatten(0, (len(x), -1))
        return self.proj(read.flatten(1, 2).index_select(1, back)).view(x.shape)

    def _in_windows(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside windows: (B*M,N,3C), ordered by image; mask (M,N,N), added to the logits -> (B*M,N,C)."""
        qkv = qkv.unflatten(-1, (3, self.heads, -1))
        length = torch.linalg.vector_norm(qkv[:, :, :2], dim=-1, keepdim=True).clamp(min=1e-12)
        scale = self.logit_scale.clamp(max=MAX_LOG_SCALE).exp().to(qkv.dtype)
        unit = qkv[:, :, :2] * (torch.stack([scale, torch.ones_like(scale)])[..., 0] / length)
        q, k, v = (x.transpose(1, 2) for x in (*unit.unbind(2), qkv[:, :, 2]))
        # The mask has four axes, because with three torch does not fuse the attention.
        added = self.position_bias().to(qkv.dtype)[None]
        if mask is not None:
            added = torch.cat([added + mask[:, None].to(qkv.dtype)] * (len(qkv) // len(mask)))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=1.0)
        return x.transpose(1, 2).flatten(2)

    def position_bias(self) -> Tensor:
        """The bias (h,N,N) = 16 sigmoid(MLP(offset)), cached per weights."""
        return self._bias(self._position_bias, self.position_mlp.parameters())

    def _position_bias(self) -> Tensor:
        first = self.position_mlp[0].weight
        table = 16 * self.position_mlp(offsets(self.window, self.pretrained_window).to(first)).sigmoid()
        return table[offset_index(self.window).to(first.device)].permute(2, 0, 1)


def offsets(window: int, pretrained_window: int) -> Tensor:
    """Log-spaced offsets of rows and columns: sign(u) log2(|u| + 1) / 3 with u = 8 d / (P - 1), d in tokens.

    Args:
        window: window side W, in tokens.
        pretrained_window: window side P in pretraining, in tokens.

    Returns:
        ((2W-1)^2, 2).
    """
    d = torch.arange(1 - window, window, dtype=torch.float32) * 8 / (pretrained_window - 1)
    d = d.sign() * (d.abs() + 1).log2() / 3
    return torch.stack(torch.meshgrid(d, d, indexing="ij"), -1).flatten(0, 1)


def offset_index(window: int) -> Tensor:
    """(N,N) int64, the index into `offsets` for each pair of tokens of a window, in row-major order."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)
