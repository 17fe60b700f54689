"""Masks from a Segment Anything checkpoint, by the automatic mask generator of Kirillov et al. (2023)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from skysense_o.checkpoint import WeightsError

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def sam_masks(
    checkpoint: Path, device: str = "cpu", **options
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Load a Segment Anything checkpoint and make a function that segments an image.

    Args:
        checkpoint: the file.
        device: device to run on.
        options: keyword arguments of SamAutomaticMaskGenerator, for example points_per_side, pred_iou_thresh.

    Returns:
        a function from uint8 (H,W,3) to masks, bool (K,H,W), and their predicted IoU (K,), 0..1.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is not a Segment Anything checkpoint.
    """
    generator = SamAutomaticMaskGenerator(load_sam(checkpoint).to(device), **options)

    def masks(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        results = generator.generate(rgb)
        if not results:
            return np.zeros((0, *rgb.shape[:2]), bool), np.zeros(0)
        return np.stack([r["segmentation"] for r in results]), np.clip([r["predicted_iou"] for r in results], 0, 1)

    return masks


def load_sam(checkpoint: Path) -> Sam:
    """Load a checkpoint of any size (ViT-B, ViT-L, ...), inferred from the shapes of the weights.

    Never runs code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is not a Segment Anything checkpoint.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"no Segment Anything checkpoint at {str(checkpoint)!r}")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model = build_sam(state)
        model.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, AttributeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{checkpoint} is not a Segment Anything checkpoint ({reason:.200})") from error
    return model.eval()


def build_sam(state: dict[str, torch.Tensor]) -> Sam:
    """Build an untrained model whose parameters have the shapes of `state`."""
    encoder = "image_encoder."
    embed, _, patch, _ = state[encoder + "patch_embed.proj.weight"].shape
    side = state[encoder + "pos_embed"].shape[1]
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith(encoder + "blocks."))
    relative = [state[f"{encoder}blocks.{i}.attn.rel_pos_h"].shape for i in range(depth)]
    longest = 2 * side - 1
    windowed = [(rows + 1) // 2 for rows, _ in relative if rows != longest]
    out = state[encoder + "neck.0.weight"].shape[0]
    mlp = state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0]
    grid = {"image_embedding_size": (side, side), "input_image_size": (side * patch, side * patch)}
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=side * patch,
            patch_size=patch,
            embed_dim=embed,
            depth=depth,
            num_heads=embed // relative[0][1],
            mlp_ratio=state[encoder + "blocks.0.mlp.lin1.weight"].shape[0] / embed,
            out_chans=out,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=windowed[0] if windowed else 0,
            global_attn_indexes=tuple(i for i, (rows, _) in enumerate(relative) if rows == longest),
        ),
        prompt_encoder=PromptEncoder(embed_dim=out, mask_in_chans=16, **grid),
        mask_decoder=MaskDecoder(
            transformer_dim=out,
            transformer=TwoWayTransformer(depth=2, embedding_dim=out, num_heads=8, mlp_dim=mlp),
            iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        ),
        pixel_mean=list(MEAN),
        pixel_std=list(STD),
    )
