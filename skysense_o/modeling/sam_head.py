"""A SAM-style mask decoder whose prompts are words. Alphabet: B images, T phrases, S tokens, D embedding, h w grid.

Made of the parts of Segment Anything (Kirillov et al. 2023), at its sizes, so that its decoder weights fit. One thing
differs: the image is refined once, by shared learned tokens, and a phrase's token only reads. So what else is asked
for changes no mask, and names stream in chunks exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.modeling.transformer import TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn

from skysense_o.modeling.decoder import MaskDecoder, Queries
from skysense_o.modeling.tower import Features


@SEM_SEG_HEADS_REGISTRY.register()
class SAMMaskHead(MaskDecoder):
    """Phrases read an image that a two-way transformer has refined; one mask and one presence score each."""

    takes_prompts = False

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
    ) -> None:
        """
        Args:
            dim: D of the tower. pyramid_channels: of its two finer maps, coarse to fine.
            width, depth, heads, mlp: of the two-way transformer (SAM: 256, 2, 8, 2048).
            shared: how many learned tokens refine the image (SAM: 5, one for quality and four for masks).
            presence: give each phrase a score for being in the picture at all.
        """
        super().__init__()
        # Normalised, since beside shared tokens and positions of unit variance a unit vector of 384 numbers drowns.
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
        }

    def forward(
        self, features: Features, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, None]:
        """See MaskDecoder. Logits come at a quarter of the dense map's stride: stride 4 for one of 16."""
        self.check(queries)
        stages, position = self._refine(features.dense)
        canvas = self._upscale(stages[-1][0], features)
        text = F.normalize(queries.text.mean(dim=2), dim=-1, eps=1e-6)
        logits, presence = [], []
        for part in text.split(chunk or text.shape[1], dim=1):
            words = self.text_projection(part)
            tokens = self._read(words, stages, position)
            weights = self.hypernetwork(tokens) + self.shortcut(words)
            masks = torch.einsum("btc,bchw->bthw", weights, canvas)
            logits.append(masks + self.bias(tokens)[..., None])
            if self.presence:
                presence.append(self.presence(tokens)[..., 0])
        return torch.cat(logits, dim=1), torch.cat(presence, dim=1) if presence else None, None

    def _refine(self, dense: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """The image and the shared tokens as each layer of the transformer meets them, last what the final one leaves.

        Returns:
            stages: one (keys (B,hw,width), shared (B,S,width)) a layer and one after them all; position (1,hw,width).
        """
        src = self.image_projection(dense)
        position = self.position(src.shape[-2:])[None].flatten(2).transpose(1, 2).to(src.dtype)
        keys = src.flatten(2).transpose(1, 2)
        origin = self.shared_tokens.weight.expand(len(src), -1, -1)
        shared, stages = origin, []
        for layer in self.transformer.layers:
            stages.append((keys, shared))
            shared, keys = layer(queries=shared, keys=keys, query_pe=origin, key_pe=position)
        stages.append((keys, shared))
        return stages, position

    def _read(self, tokens: Tensor, stages: list[tuple[Tensor, Tensor]], position: Tensor) -> Tensor:
        """(B,T,width) -> (B,T,width): the transformer's own layers without their image update, each token by itself."""
        origin = tokens
        for layer, (keys, shared) in zip(self.transformer.layers, stages):
            tokens = _read_layer(layer, tokens, origin, keys, shared, self.shared_tokens.weight, position)
        keys = stages[-1][0]
        read = self.transformer.final_attn_token_to_image(q=tokens + origin, k=keys + position, v=keys)
        return self.transformer.norm_final_attn(tokens + read)

    def _upscale(self, keys: Tensor, features: Features) -> Tensor:
        """(B,hw,width) -> (B,width/8,4h,4w), with the pyramid's detail added on the way."""
        h, w = features.dense.shape[-2:]
        x = keys.transpose(1, 2).unflatten(2, (h, w))
        x = F.gelu(self.norm(self.up1(x) + self.skip1(features.pyramid[0])))
        return F.gelu(self.up2(x) + self.skip2(features.pyramid[1]))


def _read_layer(
    layer: TwoWayAttentionBlock,
    tokens: Tensor,
    origin: Tensor,
    keys: Tensor,
    shared: Tensor,
    shared_origin: Tensor,
    position: Tensor,
) -> Tensor:
    """The token half of a SAM block: T tokens (B,T,width) see the shared tokens and themselves, not each other."""
    b, t, c = tokens.shape
    own = tokens.reshape(b * t, 1, c)
    both = torch.cat([shared.repeat_interleave(t, dim=0), own], dim=1)
    if layer.skip_first_layer_pe:
        own = layer.self_attn(q=own, k=both, v=both)
    else:
        own_origin = origin.reshape(b * t, 1, c)
        both_origin = torch.cat([shared_origin.expand(b * t, -1, -1), own_origin], dim=1)
        own = own + layer.self_attn(q=own + own_origin, k=both + both_origin, v=both)
    tokens = layer.norm1(own).reshape(b, t, c)
    read = layer.cross_attn_token_to_image(q=tokens + origin, k=keys + position, v=keys)
    tokens = layer.norm2(tokens + read)
    return layer.norm3(tokens + layer.mlp(tokens))
