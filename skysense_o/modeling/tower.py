"""The image-text tower: images and words into one space. Alphabet: B images, N strings, D embedding, h w grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn

from skysense_o.modeling.adapters import add_lora, recompute_layers

TOWER_REGISTRY = Registry("TOWER")
TOWER_REGISTRY.__doc__ = "Towers by the name that MODEL.TOWER.NAME gives; each is built by its from_config(cfg)."


def build_tower(cfg) -> Tower:
    """The tower of a config, with recomputed layers and low-rank updates where it asks for them.

    Raises:
        ValueError: low-rank updates for a tower without attention that trains.
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
    """What an image tower gives; nothing in it is normalised."""

    dense: Tensor  # (B,D,h,w), in the text space
    pyramid: tuple[Tensor, ...]  # (B,C1,2h,2w), then (B,C2,4h,4w)
    pooled: Tensor  # (B,D), in the text space
    stages: tuple[Tensor, ...] = ()  # what the backbone itself saw, finest first, where the tower shows it
    image: Tensor | None = None  # (B,3,h0,w0) as the tower was shown it, for decoders that are guided by its edges


class Tower(nn.Module):
    """Interface of all towers. A subclass sets the attributes and gives the two `encode_` methods."""

    dim: int  # D
    stride: int  # of the dense map
    pyramid_channels: tuple[int, ...]
    input_size: int | None = None  # squeezed to this square; None: native size, padded to `divisor`
    divisor: int
    scene_side: int = 0  # whole images are shown as this square, as in pretraining; 0: any size
    installed: tuple[str, ...] = ()  # prefixes of frozen weights that an installed package brings, so no file need

    def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        """Mean and standard deviation of RGB in 0..255; only `geometry.prepare` uses them."""
        super().__init__()
        # No checkpoint holds these, so they are real even where a model is built on the meta device to be filled.
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(3, 1, 1), persistent=False)

    def encode_image(self, x: Tensor) -> Features:
        """x (B,3,h0,w0) normalised -> Features."""
        raise NotImplementedError

    def encode_text(self, strings: Sequence[str]) -> Tensor:
        """N strings -> (N,D) unit vectors; uncached, keeps gradients."""
        raise NotImplementedError

    def layers(self) -> list[list[nn.Module]]:
        """The image half in layers, from the pixels on; each a list of modules. What is in none is above them all."""
        raise NotImplementedError

    def attentions(self) -> list[nn.Module]:
        """Attention layers that can be trained by low-rank updates; none where the tower has none."""
        return []

    def recompute(self) -> None:
        """In training keep no activations inside the layers of whatever half trains; see `recompute_layers`."""
        recompute_layers(module for layer in self.layers()[1:] for module in layer)

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that `encode_text` depends on."""
        raise NotImplementedError
