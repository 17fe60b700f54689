"""A SAM-style mask decoder with phrases, clicks and boxes as queries.

Shape letters: B images, T phrases, K prompts, M tokens per query, S shared tokens, D embedding, h w grid.

It is built from the modules of Segment Anything (Kirillov et al. 2023), with the same sizes, so that SAM's decoder
weights fit. One thing differs: learned tokens, shared by all queries, refine the image once, and a query's tokens
attend to the image without changing it. So a mask does not depend on the other queries, and phrases can be decoded in
chunks with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
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

from skysense_o.box_regions import CLASSES
from skysense_o.modeling.decoder import MaskDecoder, Queries
from skysense_o.modeling.mask_corrector import MaskCorrector
from skysense_o.modeling.prompt_encoder import PromptEncoder
from skysense_o.modeling.tower import Features


@dataclass
class ImageEmbedding:
    """The refined image, which all queries read. Keys and values are projected once, not per call."""

    layers: list[tuple[Tensor, Tensor, Tensor]]  # per layer keys, values (B,heads,hw,e) and shared tokens (B,S,width)
    final: tuple[Tensor, Tensor]  # keys and values of the final attention
    canvas: Tensor  # (B,width/8,4h,4w), upscaled features from which masks are made
    size: tuple[int, int]  # (h0,w0) of the prepared image
    look: Tensor | None = None  # `PromptEncoder.appearance`, kept from the first prompt in inference
    cells: Tensor | None = None  # `MaskCorrector.embed`, kept from the first correction in inference


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
        class_maps: bool = False,
        stride: int = 16,
    ) -> None:
        """
        Args:
            dim: D of the tower.
            pyramid_channels: channels of the two maps of the tower's pyramid, coarse to fine.
            width, depth, heads, mlp: sizes of the two-way transformer (SAM: 256, 2, 8, 2048).
            shared: S, number of learned tokens that refine the image (SAM: 5, one for IoU and four for masks).
            presence: predict for each phrase whether it is in the image at all.
            prompts: also take clicks and boxes.
            class_maps: masks of clicks and boxes are corrected by means of class maps, see `class_maps.py`, and no IoU
                is predicted for them.
            stride: stride of the tower's dense map, in input pixels.
        """
        super().__init__()
        # Text gets a LayerNorm, because the entries of its unit vectors are tiny beside those of tokens and position
        # encodings, which have unit variance.
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
        self.prompt_quality = MLP(width, width, 1, 2) if prompts and not class_maps else None
        self.prompt_corrector = MaskCorrector(width // 8, len(CLASSES)) if prompts and class_maps else None

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
            "class_maps": head.CLASS_MAPS,
            "stride": tower.stride,
        }

    def forward(
        self, features: Features, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See MaskDecoder. Logits have a quarter of the dense map's stride, 4 instead of 16 input pixels."""
        return self.decode(self.refine(features), queries, chunk)

    def refine(self, features: Features) -> ImageEmbedding:
        """Compute the part of `forward` that does not depend on the queries, as input of `decode`."""
        src = self.image_projection(features.dense)
        position = self.position(src.shape[-2:])[None].flatten(2).transpose(1, 2).to(src.dtype)
        keys = src.flatten(2).transpose(1, 2)
        origin = self.shared_tokens.weight.expand(src.shape[0], -1, -1)
        shared, layers = origin, []
        for layer in self.transformer.layers:
            read = _project(layer.cross_attn_token_to_image, keys + position, keys)
            layers.append((*read, shared))
            shared = _read_layer(layer, shared[:, None], origin[:, None], read)[:, 0]
            write = _project(layer.cross_attn_image_to_token, shared + origin, shared)
            keys = layer.norm4(keys + _attend(layer.cross_attn_image_to_token, keys + position, *write))
        final = _project(self.transformer.final_attn_token_to_image, keys + position, keys)
        h, w = features.dense.shape[-2:]
        return ImageEmbedding(layers, final, self._upscale(keys, features), (h * self.stride, w * self.stride))

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
            look = self.prompts.appearance(image.canvas) if image.look is None else image.look
            image.look = None if torch.is_grad_enabled() else look
            logits.append(self.prompts.draw(drawn, token, queries, image.size, look, self.position))
            iou_pred = self.prompt_quality(token)[..., 0] if self.prompt_quality else None
        return torch.cat(logits, dim=1), torch.cat(presence, dim=1) if presence else None, iou_pred

    def correct(
        self, image: ImageEmbedding, window: tuple[slice, slice], class_maps: Sequence[Tensor], mask: Tensor, *prompt
    ) -> Tensor:
        """Correct masks in a window of the mask grid, reduced to the size of `mask`; see `MaskCorrector.forward`."""
        trained = torch.is_grad_enabled()
        cells = self.prompt_corrector.embed(image.canvas) if trained or image.cells is None else image.cells
        image.cells = None if trained else cells
        cells = cells[(..., *window)]
        if cells.shape[2:] != mask.shape[1:]:
            cells = F.interpolate(cells, size=mask.shape[1:], mode="area")
        return self.prompt_corrector(cells, class_maps, mask, *prompt)

    def _draw(self, weights: Tensor, tokens: Tensor, image: ImageEmbedding) -> Tensor:
        """Mask weights (B,T,width/8) and query tokens (B,T,width) -> mask logits (B,T,4h,4w)."""
        return torch.einsum("btc,bchw->bthw", weights, image.canvas) + self.bias(tokens)[..., None]

    def _read(self, tokens: Tensor, image: ImageEmbedding, mask: Tensor | None = None) -> Tensor:
        """Run the layers of the transformer on the tokens of each query separately, without updating the image.

        Args:
            tokens: (B,T,M,width).
            mask: bool (B,T,M), False for padding; None: no padding.

        Returns:
            (B,T,M,width).
        """
        origin, shared_origin = tokens, self.shared_tokens.weight
        for layer, (key, value, shared) in zip(self.transformer.layers, image.layers):
            tokens = _read_layer(layer, tokens, origin, (key, value), mask, shared, shared_origin)
        read = _attend(self.transformer.final_attn_token_to_image, (tokens + origin).flatten(1, 2), *image.final)
        return self.transformer.norm_final_attn(tokens + read.view_as(tokens))

    def _upscale(self, keys: Tensor, features: Features) -> Tensor:
        """(B,hw,width) -> (B,width/8,4h,4w), adding the maps of the pyramid."""
        h, w = features.dense.shape[-2:]
        x = keys.transpose(1, 2).unflatten(2, (h, w))
        x = F.gelu(self.norm(self.up1(x) + self.skip1(features.pyramid[0])))
        return F.gelu(self.up2(x) + self.skip2(features.pyramid[1]))


def _read_layer(
    layer: TwoWayAttentionBlock,
    tokens: Tensor,
    origin: Tensor,
    read: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    shared: Tensor | None = None,
    shared_origin: Tensor | None = None,
) -> Tensor:
    """The token half of a SAM block: tokens (B,T,M,width) attend to the tokens of their own query and to the shared
    tokens, then to the image.

    Args:
        origin: the tokens before the first layer, their position encoding.
        read: keys and values of the image, from `_project`.
        mask: bool (B,T,M), False for padding.
        shared, shared_origin: (B,S,width) and (S,width); None: there are none besides `tokens`.
    """
    b, t, m, c = tokens.shape
    own = both = tokens.reshape(b * t, m, c)
    key_mask = None
    if shared is not None:
        both = torch.cat([shared[:, None].expand(-1, t, -1, -1).flatten(0, 1), own], dim=1)
        if mask is not None:
            key_mask = torch.cat([mask.new_ones((b * t, shared.shape[1])), mask.reshape(b * t, m)], dim=1)
    attention = layer.self_attn
    if layer.skip_first_layer_pe:
        own = _attend(attention, own, *_project(attention, both, both), key_mask)
    else:
        own_origin = both_origin = origin.reshape(b * t, m, c)
        if shared is not None:
            both_origin = torch.cat([shared_origin.expand(b * t, -1, -1), own_origin], dim=1)
        own = own + _attend(attention, own + own_origin, *_project(attention, both + both_origin, both), key_mask)
    tokens = layer.norm1(own).reshape(b, t, m, c)
    tokens = tokens + _attend(layer.cross_attn_token_to_image, (tokens + origin).flatten(1, 2), *read).view_as(tokens)
    tokens = layer.norm2(tokens)
    return layer.norm3(tokens + layer.mlp(tokens))


def _project(attention: Attention, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Project (B,N,width) to the keys and values of an attention, (B,heads,N,e)."""
    return tuple(
        attention._separate_heads(project(x), attention.num_heads)
        for project, x in ((attention.k_proj, keys), (attention.v_proj, values))
    )


def _attend(attention: Attention, q: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """SAM's attention, with keys and values from `_project` and a mask over the keys, bool (B,N)."""
    q = attention._separate_heads(attention.q_proj(q), attention.num_heads)
    mask = None if key_mask is None else key_mask[:, None, None, :]
    out = F.scaled_dot_product_attention(q, key, value, attn_mask=mask)
    return attention.out_proj(attention._recombine_heads(out))
