"""The published mask decoder: cost aggregation over space and over classes (after CAT-Seg, Cho et al. 2024).

Written from the equations of the paper. Phrases attend to each other, so every mask depends on all other phrases.

Shape letters: B images, T phrases, t phrases of one chunk, P templates, D embedding, d hidden channels, g guidance
channels, e channels per head, h w grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from skysense_o.modeling.decoder import MaskDecoder, Queries
from skysense_o.modeling.tower import Features
from skysense_o.modeling.window_attention import window_mask, window_order

NOT_SCORED = -100.0  # logit of a phrase that was not among the `max_classes` best


@SEM_SEG_HEADS_REGISTRY.register()
class CostAggregationHead(MaskDecoder):
    """Cosines of grid cells and phrases, refined by window attention over space and linear attention over phrases."""

    takes_prompts = False

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        pyramid_channels: tuple[int, int],
        templates: int = 1,
        hidden: int = 128,
        heads: int = 4,
        layers: int = 2,
        window: int = 12,
        pad_len: int = 256,
        max_classes: int = 256,
        image_guidance: int = 128,
        text_guidance: int = 128,
        pyramid_guidance: tuple[int, int] = (256, 128),
        decoder_guidance: tuple[int, int] = (32, 16),
        decoder_dims: tuple[int, int] = (64, 32),
    ) -> None:
        """
        Args:
            dim: D of the tower.
            pyramid_channels: channels of the tower's finer maps, coarse to fine.
            templates: P.
            hidden: d.
            heads, layers: number of attention heads and of layers.
            window: side of the attention windows, in grid cells.
            pad_len: attention over phrases is padded with a learned token to this number of phrases; 0: no padding.
            max_classes: if there are more phrases, only those with the largest cosines are decoded; 0: no limit.
            image_guidance, text_guidance, pyramid_guidance, decoder_guidance, decoder_dims: numbers of channels.
        """
        super().__init__()
        self.max_classes = max_classes
        self.pyramid_guidance = nn.ModuleList(
            nn.Conv2d(c, g, 1) for c, g in zip(pyramid_channels, pyramid_guidance, strict=True)
        )
        self.embed = nn.Conv2d(templates, hidden, 7, padding=3)
        self.image_guidance = nn.Conv2d(dim, image_guidance, 3, padding=1)
        self.text_guidance = nn.Linear(dim, text_guidance)
        self.decoder_guidance = nn.ModuleList(
            nn.Conv2d(g, d, 3, padding=1) for g, d in zip(pyramid_guidance, decoder_guidance, strict=True)
        )
        self.spatial = nn.ModuleList(SpatialLayer(hidden, image_guidance, heads, window) for _ in range(layers))
        self.over_names = nn.ModuleList(ClassLayer(hidden, text_guidance, heads, pad_len) for _ in range(layers))
        widths = (hidden, *decoder_dims)
        self.up = nn.ModuleList(GuidedUp(widths[i], decoder_guidance[i], widths[i + 1]) for i in range(2))
        self.predict = nn.Conv2d(decoder_dims[-1], 1, 3, padding=1)

    @classmethod
    def from_config(cls, cfg, tower) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "dim": tower.dim,
            "pyramid_channels": tower.pyramid_channels,
            "templates": len(cfg.MODEL.TEMPLATES),
            "hidden": head.HIDDEN,
            "window": head.WINDOW,
            "pad_len": head.PAD_LEN,
            "max_classes": head.MAX_CLASSES,
        }

    def forward(self, features: Features, queries: Queries, chunk: int | None = None) -> tuple[Tensor, None, None]:
        """See MaskDecoder. Logits have a quarter of the dense map's stride. `chunk` does not change the result."""
        self.check(queries)
        text, valid = queries.text, queries.valid
        correlation = torch.einsum(
            "bdhw,btpd->btphw", F.normalize(features.dense, dim=1), F.normalize(text, dim=-1, eps=1e-12)
        )
        if self.max_classes and text.shape[1] > self.max_classes:
            scores = correlation.flatten(2).amax(-1).masked_fill(~valid, float("-inf"))
            best = scores.topk(self.max_classes, dim=1, sorted=False).indices
            rows = torch.arange(len(best), device=best.device)[:, None]
            some = self._aggregate(features, correlation[rows, best], text[rows, best], valid[rows, best], chunk)
            logits = some.new_full((*text.shape[:2], *some.shape[2:]), NOT_SCORED)
            return logits.index_put((rows, best), some), None, None
        return self._aggregate(features, correlation, text, valid, chunk), None, None

    def _aggregate(
        self, features: Features, correlation: Tensor, text: Tensor, valid: Tensor, chunk: int | None
    ) -> Tensor:
        """(B,T,P,h,w) cosines -> (B,T,4h,4w) logits, in chunks of phrases that share only the sums of `ClassLayer`."""
        image_guide = self.image_guidance(features.dense).relu()
        text_guide = self.text_guidance(F.normalize(text.mean(dim=2), dim=-1, eps=1e-12)).relu()
        pyramid = [conv(level) for conv, level in zip(self.pyramid_guidance, features.pyramid, strict=True)]
        details = [conv(level).relu() for conv, level in zip(self.decoder_guidance, pyramid, strict=True)]

        chunk = chunk or text.shape[1]
        parts = [self._embed(part) for part in correlation.split(chunk, dim=1)]
        guides, valids = text_guide.split(chunk, dim=1), valid.split(chunk, dim=1)
        for spatial, over_names in zip(self.spatial, self.over_names, strict=True):
            guide = spatial.project_guide(image_guide)
            parts = [spatial(part, guide) for part in parts]
            sums = over_names.sums(parts, guides, valids)
            parts = [over_names(part, words, sums) for part, words in zip(parts, guides, strict=True)]
        return torch.cat([self._decode(part, details) for part in parts], dim=1)

    def _embed(self, correlation: Tensor) -> Tensor:
        """(B,t,P,h,w) -> (B,t,h,w,d)."""
        b, t = correlation.shape[:2]
        return self.embed(correlation.flatten(0, 1)).unflatten(0, (b, t)).permute(0, 1, 3, 4, 2)

    def _decode(self, x: Tensor, details: list[Tensor]) -> Tensor:
        """(B,t,h,w,d) -> (B,t,4h,4w)."""
        b, t = x.shape[:2]
        x = x.flatten(0, 1).permute(0, 3, 1, 2)
        for up, detail in zip(self.up, details, strict=True):
            x = up(x, detail, t)
        return self.predict(x)[:, 0].unflatten(0, (b, t))


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
        into = into.where(into < height * width, 0)  # as padding is masked, any token can stand for it
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

    Phrases are padded with a learned token. All padding is equal: it is computed once and multiplied by its count.
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
        self, parts: list[Tensor], guides: tuple[Tensor, ...], valids: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The sums of linear attention over all phrases; per chunk (B,t,h,w,d), (B,t,g), (B,t); float32 or better.

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
            missing = (self.pad_len - count).clamp(min=0)[:, None, None, None, None].to(key.dtype)
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
    """Upsample by 2 and add detail from the image; its part of the first convolution is computed once per image."""

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
