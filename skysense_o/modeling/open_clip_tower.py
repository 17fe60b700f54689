"""Models of open_clip as towers: RemoteCLIP, GeoRSCLIP, LAION's and others. B images, N strings, D embedding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from skysense_o.modeling.clip_text import after_attention, attention_heads, encode_tokens, is_plain
from skysense_o.modeling.tower import TOWER_REGISTRY, Features, Tower

SELF_ATTENTION = ("qq", "kk", "vv")


@TOWER_REGISTRY.register()
class OpenCLIPTower(Tower):
    """ViT and ConvNeXt models, at any input size.

    A model with attention pooling has no dense map in the text space, so it is an error.
    """

    @configurable
    def __init__(
        self,
        *,
        clip: nn.Module,
        tokenizer: Callable[[Sequence[str]], Tensor],
        name: str,
        attention: Sequence[str] = (),
        residual: bool = False,
    ) -> None:
        """
        Args:
            clip: an open_clip model.
            tokenizer: N strings -> (N,L) token ids.
            name: name of the model, for error messages.
            attention, residual: see `ViTReader`.

        Raises:
            ValueError: attention pooling, or neither a ViT nor a ConvNeXt.
        """
        preprocess = clip.visual.preprocess_cfg
        super().__init__([255 * m for m in preprocess["mean"]], [255 * s for s in preprocess["std"]])
        self.clip, self.tokenizer = clip, tokenizer
        self.reader = reader_of(clip.visual, name, attention, residual)
        self.stride = self.divisor = self.reader.stride
        self.pyramid_channels = self.reader.pyramid_channels
        with torch.no_grad(), torch.device("cpu"):  # where a model is built on the meta device, the tower is not
            self.dim = self.encode_text(["a"]).shape[-1]

    @classmethod
    def from_config(cls, cfg) -> dict:
        part = cfg.MODEL.TOWER.OPEN_CLIP
        known = open_clip.list_models()
        if part.NAME not in known and ":" not in part.NAME:  # hf-hub:org/repo and local-dir:folder are names too
            raise ValueError(
                f"MODEL.TOWER.OPEN_CLIP.NAME {part.NAME!r} is not a model of open_clip: {', '.join(known)}"
            )
        weights = part.WEIGHTS if cfg.MODEL.TOWER.PRETRAINED else ""
        logging.disable(logging.NOTSET if weights else logging.WARNING)  # hide the warning about random weights
        try:
            with torch.device("cpu"):  # open_clip creates buffers that are in no checkpoint
                clip = open_clip.create_model(part.NAME, pretrained=weights or None)
                tokenizer = open_clip.get_tokenizer(part.NAME)
        except RuntimeError as error:
            raise ValueError(
                f"MODEL.TOWER.OPEN_CLIP: {part.NAME!r} cannot be built with the weights {weights!r}:"
                f" {str(error).strip().splitlines()[0]}; give a file of this model, or a tag that open_clip lists"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
        keys = {"attention": part.ATTENTION, "residual": part.RESIDUAL}
        return {"clip": clip, "tokenizer": tokenizer, "name": part.NAME, **keys}

    def encode_image(self, x: Tensor) -> Features:
        """x (B,3,h0,w0), sides multiples of `divisor` -> dense map at `stride`, two finer maps, pooled vector."""
        return self.reader(self.clip.visual, x)

    def encode_text(self, strings: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(strings)).to(self.pixel_mean.device)
        text = getattr(self.clip, "text", self.clip)
        out = encode_tokens(text, tokens) if is_plain(text) else self.clip.encode_text(tokens)
        return F.normalize(out, dim=-1)

    def layers(self) -> list[list[nn.Module]]:
        return self.reader.layers(self.clip.visual)

    def attentions(self) -> list[nn.Module]:
        modules = [*self.clip.visual.modules(), *getattr(self.clip, "text", self.clip).transformer.modules()]
        return [module for module in dict.fromkeys(modules) if isinstance(module, nn.MultiheadAttention)]

    def recompute(self) -> None:
        super().recompute()
        getattr(self.clip, "text", self.clip).transformer.grad_checkpointing = True

    def text_parameters(self) -> Iterable[nn.Parameter]:
        return (p for name, p in self.clip.named_parameters() if not name.startswith(("visual.", "logit_")))


def reader_of(
    visual: nn.Module, name: str, attention: Sequence[str] = (), residual: bool = False
) -> ViTReader | ConvNeXtReader:
    """Choose the reader of dense features for an image encoder of open_clip.

    Args:
        visual: the image encoder.
        name: name of the model, for error messages.
        attention, residual: see `ViTReader`.

    Raises:
        ValueError: attention pooling, or neither a ViT nor a ConvNeXt; attention that is not known, or not a ViT's.
    """
    wrong = [kind for kind in attention if kind not in SELF_ATTENTION]
    if wrong:
        raise ValueError(f"MODEL.TOWER.OPEN_CLIP.ATTENTION {wrong} is not known: {', '.join(SELF_ATTENTION)}, or none")
    plain_blocks = isinstance(visual, VisionTransformer) and all(
        type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks
    )
    if plain_blocks and visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
        return ViTReader(visual, attention, residual)
    convnext = isinstance(visual, TimmModel) and isinstance(visual.trunk, ConvNeXt)
    if convnext and attention:
        raise ValueError(f"{name!r} is a ConvNeXt, without attention: leave MODEL.TOWER.OPEN_CLIP.ATTENTION empty")
    if convnext and not hasattr(visual.head, "pool"):
        return ConvNeXtReader(visual)
    raise ValueError(
        f"the image tower of {name!r} pools by attention, or is neither a plain ViT nor a ConvNeXt: its map is not in"
        " the text space; choose another, such as ViT-B-32, ViT-L-14, ViT-H-14 or convnext_base_w"
    )


class ViTReader:
    """Reads a ViT.

    Dense map: the value projection of the last block (MaskCLIP, Zhou et al. 2022), or its output tokens if the model
    pools by their mean. Finer maps: the blocks at two thirds and one third of the depth, upsampled.

    attention: how the last block attends instead, tokens to those with like queries (qq), keys (kk) or values (vv), the
    weights of several added (Wang et al. 2024, SCLIP: qq and kk; Lan et al. 2024, ClearCLIP: qq; SegEarth-OV: all).
    residual: keep that block's residual connection and feed-forward layer, as SCLIP does; the others leave them out.
    """

    def __init__(self, visual: VisionTransformer, attention: Sequence[str] = (), residual: bool = False) -> None:
        self.attention, self.residual = tuple(attention), residual
        depth = len(visual.transformer.resblocks)
        self.stride = visual.patch_size[0]
        self.levels = (max(0, 2 * depth // 3 - 1), max(0, depth // 3 - 1))  # the earlier block has the finer detail
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
                outputs[i] = x
        tokens = last(x)
        if self.attention:
            values = self_attention(last, x, self.attention, self.residual)
        else:
            values = tokens if visual.pool_type == "avg" else _value_path(last, x)
        dense = _to_map(visual.ln_post(values) @ visual.proj, size)
        pyramid = tuple(
            F.interpolate(
                _to_map(outputs[level], size), scale_factor=2 ** (k + 1), mode="bilinear", align_corners=False
            )
            for k, level in enumerate(self.levels)
        )
        return Features(dense, pyramid, visual._pool(tokens)[0] @ visual.proj)


def _positions(visual: VisionTransformer, size: tuple[int, int]) -> Tensor:
    """The learned position embeddings (1+hw,C), interpolated to a grid of `size`."""
    table, grid = visual.positional_embedding, visual.grid_size
    if tuple(size) == tuple(grid):
        return table
    square = table[1:].T.unflatten(1, grid)[None]
    resized = F.interpolate(square, size=size, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([table[:1], resized[0].flatten(1).T])


def self_attention(block: ResidualAttentionBlock, x: Tensor, kinds: Sequence[str], residual: bool = False) -> Tensor:
    """The last block with other attention, see `ViTReader`; x (B,L,C) -> (B,L,C)."""
    heads = dict(zip("qkv", attention_heads(block, x)))
    read = sum(F.scaled_dot_product_attention(heads[kind[0]], heads[kind[1]], heads["v"]) for kind in kinds)
    if residual:
        return after_attention(block, x, read)
    return block.ls_1(block.attn.out_proj(read.transpose(1, 2).flatten(2)))


def _value_path(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """The value projection of each token through the output projection, without attention."""
    attn = block.attn
    channels = attn.embed_dim
    values = F.linear(block.ln_1(x), attn.in_proj_weight[2 * channels :], attn.in_proj_bias[2 * channels :])
    return block.ls_1(attn.out_proj(values))


def _to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,1+hw,C) -> (B,C,h,w); drops the class token."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, size)


class ConvNeXtReader:
    """Reads a ConvNeXt. Dense map: the last stage (stride 32), normalised and projected per cell. Finer maps: the two
    stages before it.
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
