"""A SAM-style mask decoder with phrases, clicks and boxes as queries.

Alphabet: B images, T phrases, K prompts, M tokens per query, S shared tokens, D embedding, h w grid.

It is built from the modules of Segment Anything (Kirillov et al. 2023), with the same sizes, so that SAM's decoder
weights fit. One thing differs: learned tokens, shared by all queries, refine the image once, and the tokens of a query
only read it. So a mask does not depend on the other queries, and phrases can be decoded in chunks with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn

from skysense_o.modeling.decoder import MaskDecoder, Queries
from skysense_o.modeling.prompt_encoder import PromptEncoder
from skysense_o.modeling.tower import Features


@dataclass
class ImageEmbedding:
    """The refined image, which all queries read."""

    stages: list[
        tuple[Tensor, Tensor]
    ]  # input of each layer, keys (B,hw,width) and shared (B,S,width); last the output
    position: Tensor  # (1,hw,width), position encoding of the keys
    canvas: Tensor  # (B,width/8,4h,4w), upscaled features from which masks are made
    size: tuple[int, int]  # (h0,w0) of the prepared image


@SEM_SEG_HEADS_REGISTRY.register()
class SAMMaskHead(MaskDecoder):
    """A two-way transformer refines the image once; each query reads it and gets one mask.

    A phrase also gets a presence score, a prompt (clicks or a box) also gets a predicted IoU.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        pyramid_channels: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        shared: int,
        presence: bool = True,
        prompts: bool = False,
        stride: int = 16,
    ) -> None:
        """
        Args:
            dim: D of the tower.
            pyramid_channels: channels of the tower's two finer maps, coarse to fine.
            width, depth, heads, mlp: sizes of the two-way transformer (SAM: 256, 2, 8, 2048).
            shared: S, number of learned tokens that refine the image (SAM: 5, one for IoU and four for masks).
            presence: predict for each phrase whether it is in the image at all.
            prompts: also take clicks and boxes.
            stride: stride of the tower's dense map, in input pixels.
        """
        super().__init__()
        # Normalised: the entries of a unit vector are tiny beside tokens and position encodings of unit variance.
        self.image_projection = nn.Sequential(nn.Conv2d(dim, width, 1), LayerNorm2d(width))
        self.text_projection = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.position = PositionEmbeddingRandom(width // 2)
        self.shared_tokens = nn.Embedding(shared, width)
        self.transformer = TwoWayTransformer(depth=depth, embedding_dim=width, num_heads=heads, mlp_dim=mlp)
        self.up1 = nn.ConvTranspose2d(width, width // 4, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2)
        self.norm = LayerNorm2d(width // 4)
        self.skip1 = nn.Conv2d(pyramid_channels[0], width // 4, 1)
        self.skip2 = nn.Conv2d(pyramid_channels[1], width // 8, 1)
        self.hypernetwork = MLP(width, width, width // 8, 3)
        self.shortcut = nn.Linear(width, width // 8)
        self.bias = MLP(width, width, 1, 2)
        self.presence = MLP(width, width, 1, 2) if presence else None
        self.takes_prompts, self.stride = prompts, stride
        self.prompts = PromptEncoder(width) if prompts else None
        self.prompt_quality = MLP(width, width, 1, 2) if prompts else None

    @classmethod
    def from_config(cls, cfg, tower) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "dim": tower.dim,
            "pyramid_channels": tower.pyramid_channels,
            "width": head.WIDTH,
            "depth": head.DEPTH,
            "heads": head.HEADS,
            "mlp": head.MLP,
            "shared": head.SHARED_TOKENS,
            "presence": head.PRESENCE,
            "prompts": head.PROMPTS,
            "stride": tower.stride,
        }

    def forward(
        self, features: Features, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See MaskDecoder. Logits have a quarter of the dense map's stride, 4 instead of 16 input pixels."""
        return self.decode(self.refine(features), queries, chunk)

    def refine(self, features: Features) -> ImageEmbedding:
        """Compute the part of `forward` that does not depend on the queries, as input of `decode`."""
        stages, position = self._refine(features.dense)
        h, w = features.dense.shape[-2:]
        canvas = self._upscale(stages[-1][0], features)
        return ImageEmbedding(stages, position, canvas, (h * self.stride, w * self.stride))

    def decode(
        self, image: ImageEmbedding, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `forward`, from the result of `refine`. T may be 0."""
        self.check(queries)
        text = F.normalize(queries.text.mean(dim=2), dim=-1, eps=1e-6)
        logits, presence, iou_pred = [], [], None
        parts = () if text.shape[1] == 0 else text.split(chunk, dim=1) if chunk else (text,)
        for part in parts:
            words = self.text_projection(part)
            tokens = self._read(words[:, :, None], image)[:, :, 0]
            weights = self.hypernetwork(tokens) + self.shortcut(words)
            logits.append(self._draw(weights, tokens, image))
            if self.presence:
                presence.append(self.presence(tokens)[..., 0])
        if queries.prompts:
            tokens, mask = self.prompts.tokens(queries, image.size, self.position)
            token = self._read(tokens, image, mask)[:, :, 0]
            drawn = self._draw(self.hypernetwork(token), token, image)
            logits.append(self.prompts.draw(drawn, token, queries, image.size, image.canvas, self.position))
            iou_pred = self.prompt_quality(token)[..., 0]
        return torch.cat(logits, dim=1), torch.cat(presence, dim=1) if presence else None, iou_pred

    def _draw(self, weights: Tensor, tokens: Tensor, image: ImageEmbedding) -> Tensor:
        """Mask weights (B,T,width/8) and query tokens (B,T,width) -> mask logits (B,T,4h,4w)."""
        return torch.einsum("btc,bchw->bthw", weights, image.canvas) + self.bias(tokens)[..., None]

    def _refine(self, dense: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Run the two-way transformer on the image and the shared tokens.

        Returns:
            stages: the input of each layer and the output of the last one, as (keys (B,hw,width), shared (B,S,width)).
            position: (1,hw,width).
        """
        src = self.image_projection(dense)
        position = self.position(src.shape[-2:])[None].flatten(2).transpose(1, 2).to(src.dtype)
        keys = src.flatten(2).transpose(1, 2)
        origin = self.shared_tokens.weight.expand(src.shape[0], -1, -1)
        shared, stages = origin, []
        for layer in self.transformer.layers:
            stages.append((keys, shared))
            shared, keys = layer(queries=shared, keys=keys, query_pe=origin, key_pe=position)
        stages.append((keys, shared))
        return stages, position

    def _read(self, tokens: Tensor, image: ImageEmbedding, mask: Tensor | None = None) -> Tensor:
        """Run the layers of the transformer on the query tokens, without updating the image, per query.

        Args:
            tokens: (B,T,M,width).
            mask: bool (B,T,M), False for padding; None: no padding.

        Returns:
            (B,T,M,width).
        """
        origin = tokens
        for layer, (keys, shared) in zip(self.transformer.layers, image.stages):
            tokens = _read_layer(layer, tokens, origin, mask, keys, shared, self.shared_tokens.weight, image.position)
        keys = image.stages[-1][0]
        read = self.transformer.final_attn_token_to_image(
            q=(tokens + origin).flatten(1, 2), k=keys + image.position, v=keys
        )
        return self.transformer.norm_final_attn(tokens + read.view_as(tokens))

    def _upscale(self, keys: Tensor, features: Features) -> Tensor:
        """(B,hw,width) -> (B,width/8,4h,4w), adding the finer maps of the pyramid."""
        h, w = features.dense.shape[-2:]
        x = keys.transpose(1, 2).unflatten(2, (h, w))
        x = F.gelu(self.norm(self.up1(x) + self.skip1(features.pyramid[0])))
        return F.gelu(self.up2(x) + self.skip2(features.pyramid[1]))


def _read_layer(
    layer: TwoWayAttentionBlock,
    tokens: Tensor,
    origin: Tensor,
    mask: Tensor | None,
    keys: Tensor,
    shared: Tensor,
    shared_origin: Tensor,
    position: Tensor,
) -> Tensor:
    """The token half of a SAM block: tokens (B,T,M,width) attend to shared tokens and to those of their query."""
    b, t, m, c = tokens.shape
    own = tokens.reshape(b * t, m, c)
    both = torch.cat([shared[:, None].expand(-1, t, -1, -1).flatten(0, 1), own], dim=1)
    key_mask = None
    if mask is not None:
        key_mask = torch.cat([mask.new_ones((b * t, shared.shape[1])), mask.reshape(b * t, m)], dim=1)
    if layer.skip_first_layer_pe:
        own = _attend(layer.self_attn, own, both, both, key_mask)
    else:
        own_origin = origin.reshape(b * t, m, c)
        both_origin = torch.cat([shared_origin.expand(b * t, -1, -1), own_origin], dim=1)
        own = own + _attend(layer.self_attn, own + own_origin, both + both_origin, both, key_mask)
    tokens = layer.norm1(own).reshape(b, t, m, c)
    read = layer.cross_attn_token_to_image(q=(tokens + origin).flatten(1, 2), k=keys + position, v=keys)
    tokens = layer.norm2(tokens + read.view_as(tokens))
    return layer.norm3(tokens + layer.mlp(tokens))


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    """SAM's attention, with a mask over the keys, bool (B,keys), which SAM's own module does not take."""
    if key_mask is None:
        return attention(q=q, k=k, v=v)
    heads = (
        attention._separate_heads(project(x), attention.num_heads)
        for project, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    )
    out = F.scaled_dot_product_attention(*heads, attn_mask=key_mask[:, None, None, :])
    return attention.out_proj(attention._recombine_heads(out))
