"""A tiny open_clip model with SigLIP's architecture and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import timm
from timm.models.vision_transformer import VisionTransformer

WIDTH, HEADS, PATCH = 64, 4, 8


@timm.models.register_model
def tiny_siglip_trunk(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Build the image encoder without a class token; open_clip requests attention pooling (`global_pool="map"`)."""
    kwargs = {key: kwargs[key] for key in ("num_classes", "global_pool")}
    sizes = {"img_size": 32, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 3, "num_heads": HEADS}
    return VisionTransformer(**sizes, class_token=False, **kwargs)


def register(folder: Path, name: str = "tiny-sigmoid") -> None:
    """Register the model with open_clip, configured like its SigLIP models except for sizes and tokenizer.

    The name must not contain "siglip", because open_clip would then choose T5's tokenizer, which is not installed.
    """
    text = {"context_length": 16, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    vision = {"image_size": 32, "timm_model_name": "tiny_siglip_trunk", "timm_model_pretrained": False}
    body = {"embed_dim": WIDTH, "init_logit_bias": -10, "custom_text": True, "text_cfg": text}
    body["vision_cfg"] = {**vision, "timm_pool": "map", "timm_proj": "none"}
    (folder / f"{name}.json").write_text(json.dumps(body))
    open_clip.add_model_config(folder)
