"""The interface of image-text towers, which embed images and text in one space.

Shape letters: B images, N strings, D embedding, h w grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn

from skysense_o.modeling.adapters import add_lora, recompute_layers

TOWER_REGISTRY = Registry("TOWER")
TOWER_REGISTRY.__doc__ = "Towers by name, for MODEL.TOWER.NAME; each one is built by its from_config(cfg)."


def build_tower(cfg) -> Tower:
    """Build the tower of a config, with activation checkpointing and low-rank updates if they are configured.

    Raises:
        KeyError: no tower has this name.
        ValueError: low-rank updates are configured for a tower without attention layers.
    """
    tower = TOWER_REGISTRY.get(cfg.MODEL.TOWER.NAME)(cfg)
    tower.scene_side = cfg.MODEL.TOWER.SCENE_SIDE
    if cfg.MODEL.TOWER.LORA_RANK and not add_lora(tower.attentions(), cfg.MODEL.TOWER.LORA_RANK):
        raise ValueError(f"MODEL.TOWER.LORA_RANK: {cfg.MODEL.TOWER.NAME} has no attention to adapt: set it to 0")
    if cfg.MODEL.TOWER.RECOMPUTE:
        tower.recompute()
    return tower


@dataclass
class Features:
    """The output of an image tower; nothing in it is normalised.

    >>> dense = torch.zeros(1, 384, 16, 16)
    >>> pyramid = (torch.zeros(1, 96, 32, 32), torch.zeros(1, 96, 64, 64))
    >>> tuple(Features(dense, pyramid, pooled=dense.mean((2, 3))).pooled.shape)
    (1, 384)
    """

    dense: Tensor  # (B,D,h,w), in the text space
    pyramid: tuple[Tensor, ...]  # (B,C1,2h,2w), then (B,C2,4h,4w)
    pooled: Tensor  # (B,D), in the text space
    stages: tuple[Tensor, ...] = ()  # maps of the backbone, finest first, if the tower gives them
    image: Tensor | None = None  # (B,3,h0,w0), the tower's input, for decoders that follow the edges of the image


class Tower(nn.Module):
    """Interface of all towers. A subclass sets the attributes and implements the methods that raise here."""

    dim: int  # D
    stride: int  # stride of the dense map, in input pixels
    pyramid_channels: tuple[int, ...]
    input_size: int | None = None  # images are resized to a square of this side; None: only padded to `divisor`
    divisor: int  # the sides of the input are multiples of this number
    scene_side: int = 0  # side of the square to which whole images are resized for classification; 0: any size
    installed: tuple[str, ...] = ()  # name prefixes of frozen weights from an installed package, not in checkpoints

    def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        """
        Args:
            pixel_mean, pixel_std: mean and standard deviation of RGB in 0..255, for `geometry.prepare`.
        """
        super().__init__()
        # Mean and std are in no checkpoint, so they need values even if the model is built on the meta device.
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(3, 1, 1), persistent=False)

    def encode_image(self, x: Tensor) -> Features:
        """Encode normalised images x (B,3,h0,w0) -> Features."""
        raise NotImplementedError

    def encode_text(self, strings: Sequence[str]) -> Tensor:
        """N strings -> (N,D) unit vectors; not cached, keeps gradients."""
        raise NotImplementedError

    def layers(self) -> list[list[nn.Module]]:
        """The layers of the image encoder from input to output, each a list of modules, for layer-wise decay.

        Modules that belong to none of these layers are treated as if they came after the last layer.
        """
        raise NotImplementedError

    def attentions(self) -> list[nn.Module]:
        """The attention layers to which low-rank updates can be added."""
        return []

    def recompute(self) -> None:
        """Use activation checkpointing in training; see `recompute_layers`."""
        recompute_layers(module for layer in self.layers()[1:] for module in layer)

    def prepare_inference(self) -> None:
        """Replace layers of a loaded tower by faster ones, with the same results up to rounding.

        Afterwards the tower neither trains nor fits a checkpoint. Calling this method twice is allowed.
        """

    def pack(self) -> None:
        """Pack linear layers for a CPU, see `pack_linears`. Then the tower neither trains nor fits a checkpoint."""

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that `encode_text` depends on."""
        raise NotImplementedError
