"""A model of open_clip that is arranged as SigLIP, with tiny random parts."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import timm
from timm.models.vision_transformer import VisionTransformer

WIDTH, HEADS, PATCH = 64, 4, 8


@timm.models.register_model
def tiny_siglip_trunk(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """No class token; open_clip asks for pooling by attention (`global_pool="map"`)."""
    kwargs = {key: kwargs[key] for key in ("num_classes", "global_pool")}
    sizes = {"img_size": 32, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 3, "num_heads": HEADS}
    return VisionTransformer(**sizes, class_token=False, **kwargs)


def register(folder: Path, name: str = "tiny-sigmoid") -> None:
    """Make the model known to open_clip: as its own files of SigLIP, but for sizes and tokenizer (T5's is not here, and
    open_clip would choose it for a name with "siglip")."""
    text = {"context_length": 16, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    vision = {"image_size": 32, "timm_model_name": "tiny_siglip_trunk", "timm_model_pretrained": False}
    body = {"embed_dim": WIDTH, "init_logit_bias": -10, "custom_text": True, "text_cfg": text}
    body["vision_cfg"] = {**vision, "timm_pool": "map", "timm_proj": "none"}
    (folder / f"{name}.json").write_text(json.dumps(body))
    open_clip.add_model_config(folder)
