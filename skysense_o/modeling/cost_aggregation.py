"""The published mask decoder: cost aggregation over space and over classes (after CAT-Seg, Cho et al. 2024).

Written from the equations of the paper. Phrases attend to each other, so every mask depends on all other phrases.

Shape letters: B images, T phrases, t phrases of one chunk, P templates, D embedding, d hidden channels, g guidance
channels, e channels per head, h w grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from skysense_o.modeling.cost_layers import ClassLayer, GuidedUp, SpatialLayer
from skysense_o.modeling.decoder import MaskDecoder, Queries
from skysense_o.modeling.tower import Features

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
        prune: float = 0.0,
        image_guidance: int = 128,
        text_guidance: int = 128,
        pyramid_guidance: tuple[int, int] = (256, 128),
        decoder_guidance: tuple[int, int] = (32, 16),
        decoder_dims: tuple[int, int] = (64, 32),
    ) -> None:
        """
        Args:
            dim: D of the tower.
            pyramid_channels: channels of the tower's pyramid, coarse to fine.
            templates: number P of templates.
            hidden: d.
            heads, layers: number of attention heads and of layers.
            window: side of the attention windows, in grid cells.
            pad_len: attention over phrases is padded with a learned token to this number of phrases; 0: no padding.
            max_classes: if there are more phrases, only those with the largest cosines are decoded; 0: no limit.
            prune: in inference, a phrase is dropped after the first layer if its cosine lies more than this below the
                best phrase's in every cell; 0: no phrase is dropped.
            image_guidance, text_guidance, pyramid_guidance, decoder_guidance, decoder_dims: numbers of channels.

        Raises:
            ValueError: prune is negative.
        """
        super().__init__()
        if prune < 0:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.PRUNE {prune}: give a difference of cosines above 0, or 0 for none")
        self.max_classes, self.prune = max_classes, prune
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
            "prune": head.PRUNE,
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
        if not self.prune or self.training:
            return self._layers(features, correlation, text, valid, chunk)
        parts = []
        for b in range(len(text)):  # one by one: the phrases dropped for an image must not depend on the other images
            pyramid = tuple(level[b : b + 1] for level in features.pyramid)
            one = replace(features, dense=features.dense[b : b + 1], pyramid=pyramid)
            parts.append(self._layers(one, *(x[b : b + 1] for x in (correlation, text, valid)), chunk))
        return torch.cat(parts)

    def _layers(
        self, features: Features, correlation: Tensor, text: Tensor, valid: Tensor, chunk: int | None
    ) -> Tensor:
        image_guide = self.image_guidance(features.dense).relu()
        text_guide = self.text_guidance(F.normalize(text.mean(dim=2), dim=-1, eps=1e-12)).relu()
        pyramid = [conv(level) for conv, level in zip(self.pyramid_guidance, features.pyramid, strict=True)]
        details = [conv(level).relu() for conv, level in zip(self.decoder_guidance, pyramid, strict=True)]

        chunk = chunk or text.shape[1]
        parts = [self._embed(part) for part in correlation.split(chunk, dim=1)]
        guides, valids = text_guide.split(chunk, dim=1), valid.split(chunk, dim=1)
        kept, dropped = None, 0
        for spatial, over_names in zip(self.spatial, self.over_names, strict=True):
            guide = spatial.project_guide(image_guide)
            parts = [spatial(part, guide) for part in parts]
            sums = over_names.sums(parts, guides, valids, dropped)
            parts = [over_names(part, words, sums) for part, words in zip(parts, guides, strict=True)]
            if self.prune and not self.training and kept is None:
                kept = self._can_win(correlation, valid)
                dropped = int(valid.sum() - valid[:, kept].sum())
                parts = torch.cat(parts, dim=1)[:, kept].split(chunk, dim=1)
                guides, valids = text_guide[:, kept].split(chunk, dim=1), valid[:, kept].split(chunk, dim=1)
        logits = torch.cat([self._decode(part, details) for part in parts], dim=1)
        if kept is None:
            return logits
        return logits.new_full((*text.shape[:2], *logits.shape[2:]), NOT_SCORED).index_copy(1, kept, logits)

    def _can_win(self, correlation: Tensor, valid: Tensor) -> Tensor:
        """For one image: indices of the phrases whose cosine is within `prune` of the best in at least one cell."""
        cosine = correlation[0].mean(dim=1).masked_fill(~valid[0, :, None, None], float("-inf"))
        return (cosine >= cosine.amax(0) - self.prune).flatten(1).any(1).nonzero()[:, 0]

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
