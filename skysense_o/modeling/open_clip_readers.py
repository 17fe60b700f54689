"""Dense features of open_clip's image encoders, in the text space.

Shape letters: B images, L tokens, C channels, D embedding, h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers import Attention, resample_abs_pos_embed
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from skysense_o.modeling.clip_text import after_attention, attention_heads
from skysense_o.modeling.tower import Features

SELF_ATTENTION = ("qq", "kk", "vv")


def reader_of(
    visual: nn.Module, name: str, attention: Sequence[str] = (), residual: bool = False
) -> ViTReader | TimmViTReader | ConvNeXtReader:
    """Choose the reader of dense features for an image encoder of open_clip.

    Args:
        visual: the image encoder.
        name: name of the model, for error messages.
        attention, residual: see `ViTReader`.

    Raises:
        ValueError: the image encoder is neither a plain ViT nor a ConvNeXt, or its pooling gives no map in the text
            space; or `attention` is unknown, or given for a model that is not a ViT.
    """
    wrong = [kind for kind in attention if kind not in SELF_ATTENTION]
    if wrong:
        raise ValueError(f"unknown MODEL.TOWER.OPEN_CLIP.ATTENTION {wrong}: use {', '.join(SELF_ATTENTION)}, or []")
    plain_blocks = isinstance(visual, VisionTransformer) and all(
        type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks
    )
    if plain_blocks and visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
        return ViTReader(visual, attention, residual)
    if isinstance(visual, TimmModel) and _is_plain_vit(visual.trunk):
        return TimmViTReader(visual, attention, residual)
    convnext = isinstance(visual, TimmModel) and isinstance(visual.trunk, ConvNeXt)
    if convnext and attention:
        raise ValueError(f"{name!r} is a ConvNeXt, without attention: leave MODEL.TOWER.OPEN_CLIP.ATTENTION empty")
    if convnext and not hasattr(visual.head, "pool"):
        return ConvNeXtReader(visual)
    raise ValueError(
        f"the image tower of {name!r} is neither a plain ViT nor a ConvNeXt, or pools so that its map is not in the"
        " text space; choose another, such as ViT-B-32, ViT-L-14, ViT-B-16-SigLIP or convnext_base_w"
    )


def _levels(depth: int) -> tuple[int, int]:
    """Indices of the blocks at two thirds and one third of the depth; the earlier block has the finer detail."""
    return max(0, 2 * depth // 3 - 1), max(0, depth // 3 - 1)


def _pyramid(outputs: dict[int, Tensor], levels: Sequence[int]) -> tuple[Tensor, ...]:
    """Maps (B,C,h,w) of two blocks -> the pyramid: the first map enlarged by 2, the second by 4."""
    return tuple(
        F.interpolate(outputs[level], scale_factor=2 ** (k + 1), mode="bilinear", align_corners=False)
        for k, level in enumerate(levels)
    )


class ViTReader:
    """Reads the dense map and the pyramid of a ViT.

    Dense map: the value projection of the last block (MaskCLIP, Zhou et al. 2022), or the block's output tokens if the
    model pools by the mean of the tokens. Pyramid: the outputs of the blocks at two thirds and one third of the depth,
    upsampled.

    attention: replaces the attention of the last block: tokens attend to tokens with similar queries (qq), keys (kk) or
    values (vv); the results of several kinds are added (Wang et al. 2024, SCLIP: qq and kk; Lan et al. 2024, ClearCLIP:
    qq; SegEarth-OV: all).
    residual: keep the last block's residual connection and feed-forward layer, as SCLIP does. ClearCLIP and SegEarth-OV
    leave both out.
    """

    def __init__(self, visual: VisionTransformer, attention: Sequence[str] = (), residual: bool = False) -> None:
        self.attention, self.residual = tuple(attention), residual
        self.levels = _levels(len(visual.transformer.resblocks))
        self.stride = visual.patch_size[0]
        self.pyramid_channels = (visual.transformer.width,) * 2

    def layers(self, visual: VisionTransformer) -> list[list[nn.Module]]:
        return [[visual.conv1, visual.ln_pre], *([block] for block in visual.transformer.resblocks)]

    def __call__(self, visual: VisionTransformer, x: Tensor) -> Features:
        x = visual.conv1(x)
        size = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + _positions(visual, size)
        x, outputs = visual.ln_pre(x), {}
        *blocks, last = visual.transformer.resblocks
        for i, block in enumerate(blocks):
            x = block(x)
            if i in self.levels:
                outputs[i] = _to_map(x[:, 1:], size)
        tokens = last(x)
        if self.attention:
            values = self_attention(last, x, self.attention, self.residual)
        else:
            values = tokens if visual.pool_type == "avg" else _value_path(last, x)
        dense = _to_map(visual.ln_post(values[:, 1:]) @ visual.proj, size)
        return Features(dense, _pyramid(outputs, self.levels), visual._pool(tokens)[0] @ visual.proj)


def _positions(visual: VisionTransformer, size: tuple[int, int]) -> Tensor:
    """The learned position embeddings (1+hw,C), interpolated to a grid of `size`."""
    table, grid = visual.positional_embedding, visual.grid_size
    if tuple(size) == tuple(grid):
        return table
    square = table[1:].T.unflatten(1, grid)[None]
    resized = F.interpolate(square, size=size, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([table[:1], resized[0].flatten(1).T])


def self_attention(block: ResidualAttentionBlock, x: Tensor, kinds: Sequence[str], residual: bool = False) -> Tensor:
    """The last block with the attention that `ViTReader` describes; x (B,L,C) -> (B,L,C)."""
    read = _read(attention_heads(block, x), kinds)
    if residual:
        return after_attention(block, x, read)
    return block.ls_1(block.attn.out_proj(read.transpose(1, 2).flatten(2)))


def _read(heads: Sequence[Tensor], kinds: Sequence[str]) -> Tensor:
    """Attention of tokens to similar tokens. heads: query, key and value, (B,heads,L,C/heads) each, as the result."""
    heads = dict(zip("qkv", heads))
    return sum(F.scaled_dot_product_attention(heads[kind[0]], heads[kind[1]], heads["v"]) for kind in kinds)


def _value_path(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Apply the value projection, then the output projection, to each token; there is no attention."""
    attn = block.attn
    channels = attn.embed_dim
    values = F.linear(block.ln_1(x), attn.in_proj_weight[2 * channels :], attn.in_proj_bias[2 * channels :])
    return block.ls_1(attn.out_proj(values))


def _to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Arrange tokens as a map: (B,hw,C) -> (B,C,h,w)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def _is_plain_vit(trunk: nn.Module) -> bool:
    """Whether `TimmViTReader` supports a model of timm: a ViT with plain blocks, without class token."""
    plain = isinstance(trunk, TimmViT) and trunk.num_prefix_tokens == 0 and trunk.pos_embed is not None
    blocks = trunk.blocks if plain else ()
    return plain and all(type(b) is Block and type(b.attn) is Attention and b.attn.gate is None for b in blocks)


class TimmViTReader:
    """Reads a ViT of timm without class token, such as SigLIP's (Zhai et al. 2023), which pools by attention.

    Dense map: the model's pooling is applied to each cell alone, so the map is in the space of the pooled vector. With
    attention pooling this is MaskCLIP's value path, inside the pooling layer.
    Pyramid, attention and residual: as in `ViTReader`.
    """

    def __init__(self, visual: TimmModel, attention: Sequence[str] = (), residual: bool = False) -> None:
        self.attention, self.residual = tuple(attention), residual
        self.levels = _levels(len(visual.trunk.blocks))
        self.stride = visual.trunk.patch_embed.patch_size[0]
        self.pyramid_channels = (visual.trunk.embed_dim,) * 2

    def layers(self, visual: TimmModel) -> list[list[nn.Module]]:
        return [[visual.trunk.patch_embed, visual.trunk.norm_pre], *([block] for block in visual.trunk.blocks)]

    def __call__(self, visual: TimmModel, x: Tensor) -> Features:
        trunk = visual.trunk
        x = trunk.patch_embed.proj(x)
        size, outputs = tuple(x.shape[-2:]), {}
        positions = resample_abs_pos_embed(trunk.pos_embed, size, trunk.patch_embed.grid_size, num_prefix_tokens=0)
        x = trunk.norm_pre(trunk.patch_embed.norm(x.flatten(2).transpose(1, 2)) + positions)
        *blocks, last = trunk.blocks
        for i, block in enumerate(blocks):
            x = block(x)
            if i in self.levels:
                outputs[i] = _to_map(x, size)
        tokens = last(x)
        values = timm_self_attention(last, x, self.attention, self.residual) if self.attention else tokens
        cells = trunk.norm(values).flatten(0, 1)[:, None]
        dense = visual.head(trunk.forward_head(cells)).unflatten(0, (len(x), -1))
        pooled = visual.head(trunk.forward_head(trunk.norm(tokens)))
        return Features(_to_map(dense, size), _pyramid(outputs, self.levels), pooled)


def timm_self_attention(block: Block, x: Tensor, kinds: Sequence[str], residual: bool = False) -> Tensor:
    """Do what `self_attention` does, for a transformer block of timm."""
    part = block.attn
    q, k, v = part.qkv(block.norm1(x)).unflatten(-1, (3, part.num_heads, -1)).permute(2, 0, 3, 1, 4)
    read = _read((part.q_norm(q), part.k_norm(k), v), kinds)
    read = block.ls1(part.proj(part.norm(read.transpose(1, 2).flatten(2))))
    return x + read + block.ls2(block.mlp(block.norm2(x + read))) if residual else read


class ConvNeXtReader:
    """Reads a ConvNeXt. Dense map: the last stage (stride 32), normalised and projected per cell. Pyramid: the two
    stages before the last.
    """

    stride = 32

    def __init__(self, visual: TimmModel) -> None:
        channels = [info["num_chs"] for info in visual.trunk.feature_info]
        self.pyramid_channels = (channels[2], channels[1])

    def layers(self, visual: TimmModel) -> list[list[nn.Module]]:
        return [[visual.trunk.stem], *([stage] for stage in visual.trunk.stages)]

    def __call__(self, visual: TimmModel, x: Tensor) -> Features:
        trunk, maps = visual.trunk, []
        x = trunk.stem(x)
        for stage in trunk.stages:
            x = stage(x)
            maps.append(x)
        x = trunk.norm_pre(x)
        cells = trunk.head.norm(x).permute(0, 2, 3, 1)  # LayerNorm over channels
        dense = visual.head(trunk.head.pre_logits(cells)).permute(0, 3, 1, 2)
        return Features(dense, (maps[2], maps[1]), visual.head(trunk.forward_head(x)))
