"""Tiny SAM 3 models with random weights and CLIP's real tokenizer, built from open_clip's merge table."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

import torch
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from transformers import (
    CLIPTokenizer,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    Sam3Processor,
    Sam3VideoConfig,
    Sam3VideoModel,
)

SIDE = 56
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
VISION = {
    "backbone_config": {
        "model_type": "sam3_vit_model",
        "num_hidden_layers": 2,
        "image_size": SIDE,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
        **SMALL,
    },
    "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}
TEXT = {"model_type": "clip_text_model", "projection_dim": 16, "num_hidden_layers": 2, "max_position_embeddings": 32}
DETECTOR = {
    "vision_config": VISION,
    "text_config": {**TEXT, "vocab_size": 49408, "hidden_act": "gelu", **SMALL},
    "geometry_encoder_config": {"num_layers": 1, **SMALL},
    "detr_encoder_config": {"num_layers": 2, **SMALL},
    "detr_decoder_config": {"num_layers": 2, "num_queries": 6, **SMALL},
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
}
TRACKER = {
    "vision_config": VISION,
    "prompt_encoder_config": {"hidden_size": 32, "image_size": SIDE, "patch_size": 14},
    "mask_decoder_config": {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    },
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 64,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 16,
    "mask_downsampler_embed_dim": 32,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
    "image_size": SIDE,
}


@functools.cache
def tokenizer() -> CLIPTokenizer:
    with gzip.open(default_bpe()) as file:
        lines = file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    entries = [*letters, *(f"{v}</w>" for v in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=merges)


def processor() -> Sam3Processor:
    return Sam3Processor(Sam3ImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer())


def louder(model: torch.nn.Module) -> torch.nn.Module:
    """Scale up a model's random weights, so that words and images clearly influence the result."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                loud = ("presence_head", "scoring", "mask_embedder", "detr_encoder", "semantic_projection")
                parameter.mul_(12.0 if any(part in name for part in loud) else 4.0)
    return model.eval()


def make_detector(folder: Path) -> Path:
    """Save a model without the tracker; return its folder."""
    torch.manual_seed(0)
    louder(Sam3Model(Sam3Config(**DETECTOR))).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def make_whole(folder: Path) -> Path:
    """Save a model with detector and tracker, in the layout of facebook/sam3; return its folder."""
    torch.manual_seed(0)
    config = Sam3VideoConfig(
        detector_config={"model_type": "sam3", **DETECTOR},
        tracker_config={"model_type": "sam3_tracker_video", **TRACKER},
        low_res_mask_size=16,
    )
    louder(Sam3VideoModel(config)).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
