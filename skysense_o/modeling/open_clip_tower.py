"""Models of open_clip as towers: RemoteCLIP, GeoRSCLIP, LAION's CLIP, SigLIP and others.

Shape letters: B images, N strings, D embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from skysense_o.modeling.clip_text import encode_tokens, is_plain
from skysense_o.modeling.open_clip_readers import reader_of
from skysense_o.modeling.tower import TOWER_REGISTRY, Features, Tower


@contextmanager
def without_warnings_of(package: str) -> Iterator[None]:
    """Drop a package's messages to the root logger, up to warnings; messages of other packages pass."""

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or package not in Path(record.pathname).parts

    root = logging.getLogger()
    root.addFilter(passes)
    try:
        yield
    finally:
        root.removeFilter(passes)


def preprocessing(name: str, weights: str, built: dict) -> dict:
    """How a model's images are preprocessed: "mean", "std" and more, see open_clip's `PreprocessCfg`.

    If the weights are not one of its own tags, open_clip builds every model with CLIP's mean and std, which are wrong
    for SigLIP. So for a weights file, mean and std come from the first weights that open_clip lists for the model.

    Args:
        weights: a tag of open_clip, a file, or "". built: the values that the model was built with.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags or open_clip.get_pretrained_cfg(name, weights):
        return built
    listed = open_clip.get_pretrained_cfg(name, tags[0])
    return {**built, **{key: listed[key] for key in ("mean", "std") if listed.get(key)}}


@TOWER_REGISTRY.register()
class OpenCLIPTower(Tower):
    """ViT models (CLIP's and SigLIP's) and ConvNeXt models, at any input size; other models are an error."""

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
            ValueError: see `reader_of`.
        """
        preprocess = clip.visual.preprocess_cfg
        super().__init__([255 * m for m in preprocess["mean"]], [255 * s for s in preprocess["std"]])
        self.clip, self.tokenizer = clip, tokenizer
        self.reader = reader_of(clip.visual, name, attention, residual)
        self.stride = self.divisor = self.reader.stride
        self.pyramid_channels = self.reader.pyramid_channels
        with torch.no_grad(), torch.device("cpu"):  # on the CPU, even if the model is built on the meta device
            self.dim = self.encode_text(["a"]).shape[-1]

    @classmethod
    def from_config(cls, cfg) -> dict:
        part = cfg.MODEL.TOWER.OPEN_CLIP
        known = open_clip.list_models()
        if part.NAME not in known and ":" not in part.NAME:  # hf-hub:org/repo and local-dir:folder are names too
            raise ValueError(
                f"MODEL.TOWER.OPEN_CLIP.NAME {part.NAME!r} is not a model of open_clip:"
                f" choose one of {', '.join(known)}"
            )
        try:
            tokenizer = open_clip.get_tokenizer(part.NAME)
        except (OSError, ValueError, ImportError) as error:  # SigLIP's tokenizer is on the hub, CLIP's in open_clip
            raise ValueError(
                f"MODEL.TOWER.OPEN_CLIP: the tokenizer of {part.NAME!r} is not in the local cache and could not be"
                f" downloaded ({str(error).strip().splitlines()[0]}): check HF_HUB_OFFLINE and the network"
            ) from error
        weights = part.WEIGHTS if cfg.MODEL.TOWER.PRETRAINED else ""
        quiet = nullcontext() if weights else without_warnings_of("open_clip")  # open_clip warns of random weights
        try:
            with quiet, torch.device("cpu"):  # on the CPU, because no checkpoint contains open_clip's buffers
                clip = open_clip.create_model(part.NAME, pretrained=weights or None)
        except RuntimeError as error:
            raise ValueError(
                f"MODEL.TOWER.OPEN_CLIP: {part.NAME!r} cannot be built with the weights {weights!r}:"
                f" {str(error).strip().splitlines()[0]}; give a file of this model, or a tag that open_clip lists"
            ) from error
        clip.visual.preprocess_cfg = preprocessing(part.NAME, weights, clip.visual.preprocess_cfg)
        keys = {"attention": part.ATTENTION, "residual": part.RESIDUAL}
        return {"clip": clip, "tokenizer": tokenizer, "name": part.NAME, **keys}

    def encode_image(self, x: Tensor) -> Features:
        """x (B,3,h0,w0), sides multiples of `divisor` -> dense map at `stride`, pyramid of two maps, pooled vector."""
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
