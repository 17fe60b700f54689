"""Parameter names of published checkpoints: one table for SkySense-O, one for Segment Anything."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

CLIP_PREFIX = "sem_seg_head.clip_model."

# Our name -> published name, applied in order: first the image tower, then the text tower, then the decoder.
_RENAMES = [
    (r"^tower\.visual\.norms\.(\d)\.", r"tower.visual.norm\1."),
    (r"^(tower\.visual\..*)\.attn\.position_mlp\.", r"\1.attn.cpb_mlp."),
    (r"^(tower\.visual\..*)\.attn\.", r"\1.attn.w_msa."),
    (r"^(tower\.visual\..*)\.mlp\.0\.", r"\1.ffn.layers.0.0."),
    (r"^(tower\.visual\..*)\.mlp\.2\.", r"\1.ffn.layers.1."),
    (r"^(tower\.visual\..*)\.merge\.", r"\1.downsample."),
    (r"^tower\.text\.", CLIP_PREFIX),
    (r"^tower\.", CLIP_PREFIX),
    (r"^region_projection\.expand\.", "pixel_shuffle_conv0."),
    (r"^region_projection\.mix\.", "pixel_shuffle_conv1."),
    (r"^sem_seg_head\.pyramid_guidance\.0\.", "visual_guidance_conv1."),
    (r"^sem_seg_head\.pyramid_guidance\.1\.", "visual_guidance_conv2."),
    (r"^sem_seg_head\.(?!clip_model)", "sem_seg_head.transformer."),
    (r"\.transformer\.embed\.", ".transformer.conv1."),
    (r"\.transformer\.predict\.", ".transformer.head."),
    (r"\.transformer\.image_guidance\.", ".transformer.guidance_projection.0."),
    (r"\.transformer\.text_guidance\.", ".transformer.text_guidance_projection.0."),
    (r"\.transformer\.decoder_guidance\.(\d)\.", r".transformer.decoder_guidance_projection.\1.0."),
    (r"\.spatial\.(\d)\.guide_norm\.", r".layers.\1.swin_block.guidance_norm."),
    (r"\.spatial\.(\d)\.blocks\.0\.", r".layers.\1.swin_block.block_1."),
    (r"\.spatial\.(\d)\.blocks\.1\.", r".layers.\1.swin_block.block_2."),
    (r"(\.block_\d)\.(q|k|v|proj)\.", r"\1.attn.\2."),
    (r"(\.block_\d)\.mlp\.0\.", r"\1.mlp.fc1."),
    (r"(\.block_\d)\.mlp\.2\.", r"\1.mlp.fc2."),
    (r"\.over_names\.(\d)\.(q|k|v)\.", r".layers.\1.attention.attention.\2."),
    (r"\.over_names\.(\d)\.mlp\.", r".layers.\1.attention.MLP."),
    (r"\.over_names\.(\d)\.padding_token$", r".layers.\1.attention.padding_tokens"),
    (r"\.over_names\.(\d)\.padding_guide$", r".layers.\1.attention.padding_guidance"),
    (r"\.over_names\.(\d)\.", r".layers.\1.attention."),
    (r"\.transformer\.up\.0\.up\.", ".transformer.decoder1.up."),
    (r"\.transformer\.up\.1\.up\.", ".transformer.decoder2.up."),
    (r"\.transformer\.up\.0\.conv1\.", ".transformer.decoder1.conv.double_conv.0."),
    (r"\.transformer\.up\.0\.norm1\.", ".transformer.decoder1.conv.double_conv.1."),
    (r"\.transformer\.up\.0\.conv2\.", ".transformer.decoder1.conv.double_conv.3."),
    (r"\.transformer\.up\.0\.norm2\.", ".transformer.decoder1.conv.double_conv.4."),
    (r"\.transformer\.up\.1\.conv1\.", ".transformer.decoder2.conv.double_conv.0."),
    (r"\.transformer\.up\.1\.norm1\.", ".transformer.decoder2.conv.double_conv.1."),
    (r"\.transformer\.up\.1\.conv2\.", ".transformer.decoder2.conv.double_conv.3."),
    (r"\.transformer\.up\.1\.norm2\.", ".transformer.decoder2.conv.double_conv.4."),
]

# Tensors of a published file that our model does not have: buffers that we recompute, the sentence encoder of a
# training loss, and 269.7 M parameters of the region loss (MODEL.LOSS.REGION_UPSCALE 16 keeps these parameters).
NOT_NEEDED = re.compile(
    r"^tokennizer_model\.|^pixel_shuffle_|\.relative_(coords_table|position_index)$|\.swin_block\.block_2\.attn_mask$"
)


def published_name(ours: str) -> str:
    """Map our name of a parameter to its name in a published checkpoint of the whole model.

    >>> published_name("tower.visual.norms.3.weight")
    'sem_seg_head.clip_model.visual.norm3.weight'
    """
    for pattern, replacement in _RENAMES:
        ours = re.sub(pattern, replacement, ours)
    return ours


def published_names(ours: Iterable[str]) -> dict[str, str]:
    """The table published name -> our name, for all of our names."""
    return {published_name(name): name for name in ours}


def to_ours(state: dict[str, Tensor], ours: Iterable[str]) -> dict[str, Tensor]:
    """Rename the tensors of a published checkpoint to our names; tensors that we do not have keep their names.

    Args:
        state: published name -> tensor.
        ours: all of our parameter names.
    """
    table = published_names(ours)
    return {table.get(name, name): tensor for name, tensor in state.items()}


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors to their published names, the inverse of `to_ours`.

    Names that already are published names stay.
    """

    def name_of(name: str) -> str:
        already = name.startswith((CLIP_PREFIX, "sem_seg_head.transformer.")) or NOT_NEEDED.search(name)
        return name if already else published_name(name)

    return {name_of(name): tensor for name, tensor in state.items()}


# Name in Segment Anything -> name in SAMMaskHead. Tensors with the same target are concatenated.
_SAM = [
    (r"^mask_decoder\.transformer\.", "transformer."),
    (r"^mask_decoder\.output_upscaling\.0\.", "up1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "up2."),
    (r"^mask_decoder\.output_hypernetworks_mlps\.0\.", "hypernetwork."),
    (r"^mask_decoder\.(iou_token|mask_tokens)\.", "shared_tokens."),
    (r"^prompt_encoder\.pe_layer\.", "position."),
    (r"^prompt_encoder\.point_embeddings\.\d\.", "prompts.kind."),
]


def from_sam(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors for a `SAMMaskHead` from a Segment Anything checkpoint.

    Args:
        state: Segment Anything's name -> tensor.

    Returns:
        name in the head -> tensor; {} for any other checkpoint.
    """
    tensors_of: dict[str, list[Tensor]] = {}
    for name in sorted(state):  # sorted: iou_token comes before mask_tokens, and point embeddings are in order
        for pattern, replacement in _SAM:
            if re.search(pattern, name):
                tensors_of.setdefault(re.sub(pattern, replacement, name), []).append(state[name])
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in tensors_of.items()}
