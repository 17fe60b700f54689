"""Stage 1: images and captions into one space, with the image's own structure kept (SkySense-O, section on
SkySense-CLIP). Alphabet: B images, N those of all processes, D embedding, H W pixels, h w grid.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed.nn.functional as distributed
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skysense_o import geometry
from skysense_o.modeling import Tower, build_tower
from skysense_o.objective import full_precision
from skysense_o.sample import Sample
from skysense_o.vocabulary import TextBank

LARGEST_SCALE = math.log(100)  # CLIP's limit


@META_ARCH_REGISTRY.register()
class ImageTextPretraining(nn.Module):
    """L = CE(image, text) + CE(image, view) + MR(masked image, image), each with a weight (SkySense-O, L_pretrain).

    The paper says no more of the three than this; contrast is CLIP's (Radford et al. 2021) over the batches of all
    processes, reconstruction SimMIM's (Xie et al. 2022): L1 on the hidden pixels, from a linear layer.
    """

    @configurable
    def __init__(
        self,
        *,
        tower: Tower,
        image_text: float = 1.0,
        image_image: float = 1.0,
        reconstruction: float = 1.0,
        sigmoid: bool = False,
        image_temperature: float = 0.1,
        chunk: int = 0,
    ) -> None:
        """
        Args:
            image_text, image_image, reconstruction: weights; a term of weight 0 is not computed.
            sigmoid: pairwise sigmoid loss (Zhai et al. 2023) in place of the softmax over the batch.
            image_temperature: of the image-image contrast.
            chunk: images and captions whose activations are in memory at a time; the rest is computed again in the
                backward pass, so that a batch of any size fits (as cached gradients do, Gao et al. 2021). 0: all.
        """
        super().__init__()
        self.tower, self.text_bank, self.chunk, self.sigmoid = tower, TextBank(), chunk, sigmoid
        weights = {"image_text": image_text, "image_image": image_image, "reconstruction": reconstruction}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.image_temperature = image_temperature
        self.pretraining = nn.ParameterDict()
        if image_text:
            self.pretraining["scale"] = nn.Parameter(torch.tensor(math.log(10.0 if sigmoid else 1 / 0.07)))
        if image_text and sigmoid:
            self.pretraining["bias"] = nn.Parameter(torch.tensor(-10.0))
        if reconstruction:
            self.pretraining["pixels"] = nn.Parameter(torch.randn(tower.dim, 3 * tower.stride**2) * tower.dim**-0.5)

    @classmethod
    def from_config(cls, cfg) -> dict:
        stage = cfg.PRETRAIN
        return {
            "tower": build_tower(cfg),
            "image_text": stage.IMAGE_TEXT,
            "image_image": stage.IMAGE_IMAGE,
            "reconstruction": stage.RECONSTRUCTION,
            "sigmoid": stage.SIGMOID,
            "image_temperature": stage.IMAGE_TEMPERATURE,
            "chunk": stage.CHUNK,
        }

    @property
    def device(self) -> torch.device:
        return self.tower.pixel_mean.device

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Samples of `CaptionMapper` -> weighted losses of this process's share."""
        x, _ = geometry.prepare([s["image"] for s in samples], self.tower)
        terms, pooled = {}, None
        if "image_text" in self.weights or "image_image" in self.weights:
            pooled = self._embed(self._pooled, x)
        if "image_text" in self.weights:
            captions = [s["vocabulary"].classes[0] for s in samples]
            text = self._embed(self.tower.encode_text, captions)
            with full_precision(self.device):
                terms["image_text"] = self._image_text(pooled, F.normalize(text.float(), dim=-1), captions)
        if "image_image" in self.weights:
            view, _ = geometry.prepare([s["view"] for s in samples], self.tower)
            other = self._embed(self._pooled, view)
            with full_precision(self.device):
                terms["image_image"] = contrast(pooled, other, 1 / self.image_temperature)
        if "reconstruction" in self.weights:
            hidden = torch.stack([s["hidden"] for s in samples]).to(self.device)
            each = self._embed(self._reconstruct, torch.cat([x, hidden[:, None].to(x.dtype)], dim=1))
            terms["reconstruction"] = each.mean()
        return {f"loss_{name}": weight * terms[name] for name, weight in self.weights.items()}

    def _image_text(self, pooled: Tensor, text: Tensor, captions: Sequence[str]) -> Tensor:
        """Images that share a caption are no counter-examples of each other."""
        words = [int.from_bytes(hashlib.sha256(c.encode()).digest()[:7], "big") for c in captions]
        scale = self.pretraining["scale"].clamp(max=LARGEST_SCALE).exp()
        ids = torch.tensor(words, device=pooled.device)
        if self.sigmoid:
            return pairwise_sigmoid(pooled, text, scale, self.pretraining["bias"], ids)
        return contrast(pooled, text, scale, ids)

    def _pooled(self, x: Tensor) -> Tensor:
        return F.normalize(self.tower.encode_image(x).pooled.float(), dim=-1)

    def _reconstruct(self, x: Tensor) -> Tensor:
        """(B,4,h0,w0), the last channel 1 where a pixel is hidden -> (B,) mean L1 over hidden pixels, normalised ones.

        Hidden pixels are painted in the mean colour, which is 0.
        """
        x, hidden = x[:, :3], x[:, 3:]
        dense = self.tower.encode_image(x * (1 - hidden)).dense
        pixels = torch.einsum("bdhw,dc->bchw", dense, self.pretraining["pixels"].to(dense.dtype))
        error = (F.pixel_shuffle(pixels.float(), self.tower.stride) - x).abs() * hidden
        return error.sum((1, 2, 3)) / (3 * hidden.sum((1, 2, 3))).clamp(min=1)

    def _embed(self, function: Callable, items: Tensor | Sequence[str]) -> Tensor:
        """function of all items, `chunk` at a time; their activations are not kept where there are several chunks."""
        if not self.chunk or len(items) <= self.chunk:
            return function(items)
        parts = [items[i : i + self.chunk] for i in range(0, len(items), self.chunk)]
        return torch.cat([checkpoint(function, part, use_reentrant=False) for part in parts])


def contrast(a: Tensor, b: Tensor, scale: Tensor | float, ids: Tensor | None = None) -> Tensor:
    """Cross-entropy of finding each other's partner among those of all processes, both ways (Radford et al. 2021).

    Args:
        a, b: (B,D) unit vectors of this process; partners have the same place. scale: 1 / temperature.
        ids: (B,) what counts as the same thing: no counter-example, but no partner either.

    Returns:
        The mean over this process's share. The gradient reaches the vectors of all processes, so that averaging it
        over processes, as DDP does, gives that of the whole batch.
    """
    everything = gathered(a), gathered(b)
    place = torch.arange(len(a), device=a.device) + comm.get_rank() * len(a)
    same = torch.zeros((len(a), len(everything[0])), dtype=torch.bool, device=a.device)
    if ids is not None:
        same = ids[:, None] == gathered(ids)
        same[torch.arange(len(a)), place] = False
    losses = [
        F.cross_entropy((scale * own @ others.T).masked_fill(same, float("-inf")), place)
        for own, others in ((a, everything[1]), (b, everything[0]))
    ]
    return sum(losses) / 2


def pairwise_sigmoid(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, ids: Tensor | None = None) -> Tensor:
    """Each pair by itself: partners or not (Zhai et al. 2023). Arguments and gradient as `contrast`."""
    others = gathered(b)
    place = torch.arange(len(a), device=a.device) + comm.get_rank() * len(a)
    partner = -torch.ones((len(a), len(others)), device=a.device)
    partner[torch.arange(len(a)), place] = 1
    each = -F.logsigmoid(partner * (scale * a @ others.T + bias))
    if ids is not None:
        each = each.masked_fill((ids[:, None] == gathered(ids)) & (partner < 0), 0.0)
    return each.sum(1).mean()


def gathered(x: Tensor) -> Tensor:
    """(B,...) of this process -> (N,...) of all, in the order of their ranks; with gradients."""
    if comm.get_world_size() == 1:
        return x
    if x.is_floating_point():
        return torch.cat(distributed.all_gather(x.contiguous()))
    parts = [torch.empty_like(x) for _ in range(comm.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)
