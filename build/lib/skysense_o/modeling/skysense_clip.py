"""SkySense-CLIP, the published tower: Swin V2 encodes images, the text tower of CLIP ViT-H encodes text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from skysense_o.modeling.clip_text import encode_tokens
from skysense_o.modeling.packed import pack_linears
from skysense_o.modeling.swin_v2 import SwinV2
from skysense_o.modeling.tower import TOWER_REGISTRY, Features, Tower


@TOWER_REGISTRY.register()
class SkySenseCLIP(Tower):
    """Swin V2 and CLIP's text tower. The dense map is Swin's last map, projected; the pooled vector is its mean."""

    stride, divisor = 16, 32

    @configurable
    def __init__(self, *, visual: SwinV2, text: TextTransformer, input_size: int | None) -> None:
        """
        Args:
            visual: the image encoder.
            text: the text encoder.
            input_size: images are resized to this square (published: 384); None: native size.
        """
        super().__init__(pixel_mean=(123.675, 116.28, 103.53), pixel_std=(58.395, 57.12, 57.375))
        self.visual, self.text, self.input_size = visual, text, input_size
        self.dim = text.output_dim
        self.pyramid_channels = (visual.channels[1], visual.channels[0])
        self.vision_projection = nn.Parameter(torch.randn(visual.channels[-1], self.dim) * visual.channels[-1] ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # scale of the image-text loss

    @classmethod
    def from_config(cls, cfg) -> dict:
        vision, text = cfg.MODEL.TOWER.SWIN, cfg.MODEL.TOWER.CLIP_TEXT
        return {
            "visual": SwinV2(
                dim=vision.DIM,
                depths=vision.DEPTHS,
                heads=vision.HEADS,
                windows=vision.WINDOWS,
                pretrained_windows=vision.PRETRAINED_WINDOWS,
                extra_norm_every=vision.EXTRA_NORM_EVERY,
                drop_path=vision.DROP_PATH,
            ),
            "text": TextTransformer(
                width=text.WIDTH,
                heads=text.HEADS,
                layers=text.LAYERS,
                output_dim=text.OUTPUT_DIM,
                no_causal_mask=True,  # `encode_tokens` applies the causal mask itself
            ),
            "input_size": cfg.MODEL.TOWER.INPUT_SIZE or None,
        }

    def encode_image(self, x: Tensor) -> Features:
        """x (B,3,h0,w0) -> dense (B,D,h0/16,w0/16), the maps at strides 8 and 4, pooled (B,D)."""
        fine, middle, _, last = self.visual(x)
        dense = torch.einsum("bchw,cd->bdhw", last, self.vision_projection)
        return Features(dense, (middle, fine), dense.mean(dim=(2, 3)))

    def encode_text(self, strings: Sequence[str]) -> Tensor:
        tokens = open_clip.tokenizer.tokenize(list(strings)).to(self.pixel_mean.device)
        return F.normalize(encode_tokens(self.text, tokens), dim=-1)

    def layers(self) -> list[list[nn.Module]]:
        merges = [[stage.merge] if stage.merge is not None else [] for stage in self.visual.stages]
        blocks = [
            [*(merge if i == 0 else ()), block]
            for stage, merge in zip(self.visual.stages, merges)
            for i, block in enumerate(stage.blocks)
        ]
        return [[self.visual.patch_embed], *blocks]

    def attentions(self) -> list[nn.Module]:
        image = [block.attn for stage in self.visual.stages for block in stage.blocks]
        return image + [block.attn for block in self.text.transformer.resblocks]

    def recompute(self) -> None:
        super().recompute()
        self.text.set_grad_checkpointing()

    def pack(self) -> None:
        blocks = [block for stage in self.visual.stages for block in stage.blocks] + [*self.text.transformer.resblocks]
        pack_linears(part for block in blocks for part in (block.attn, block.mlp))

    def text_parameters(self) -> Iterable[nn.Parameter]:
        return self.text.parameters()
