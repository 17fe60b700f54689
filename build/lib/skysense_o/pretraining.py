"""Stage 1: contrastive pretraining on images and captions (SkySense-O, section on SkySense-CLIP).

Shape letters: B images of this process, N images of all processes, D embedding, H W pixels, h w grid.
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
from skysense_o.text_bank import TextBank

LARGEST_SCALE = math.log(100)  # CLIP's limit


@META_ARCH_REGISTRY.register()
class ImageTextPretraining(nn.Module):
    """L = CE(image, text) + CE(image, view) + MR(masked image, image), each with a weight (SkySense-O, L_pretrain).

    The paper gives no details of the three terms. Here the contrastive terms follow CLIP (Radford et al. 2021), over
    the batches of all processes; masked reconstruction follows SimMIM (Xie et al. 2022): a linear layer predicts the
    masked pixels, with an L1 loss.
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
            image_text, image_image, reconstruction: weight of each term; a term of weight 0 is not computed.
            sigmoid: pairwise sigmoid loss (Zhai et al. 2023) instead of the softmax over the batch.
            image_temperature: temperature of the image-image term.
            chunk: number of images and captions whose activations are in memory at once. The
                activations of other chunks are recomputed in the backward pass, so a batch of any size fits (compare
                gradient caching, Gao et al. 2021). 0: all are in memory.
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
        """Compute the weighted losses of this process.

        Args:
            samples: B from `CaptionMapper`, with `view` and `hidden` if the terms that use these have a weight.

        Returns:
            "loss_image_text", "loss_image_image" and "loss_reconstruction", without terms of weight 0.
        """
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
        """The image-text loss, in which images with the same caption are not negatives of each other."""
        hashes = [int.from_bytes(hashlib.sha256(c.encode()).digest()[:7], "big") for c in captions]
        scale = self.pretraining["scale"].clamp(max=LARGEST_SCALE).exp()
        ids = torch.tensor(hashes, device=pooled.device)
        if self.sigmoid:
            return pairwise_sigmoid(pooled, text, scale, self.pretraining["bias"], ids)
        return contrast(pooled, text, scale, ids)

    def _pooled(self, x: Tensor) -> Tensor:
        return F.normalize(self.tower.encode_image(x).pooled.float(), dim=-1)

    def _reconstruct(self, x: Tensor) -> Tensor:
        """(B,4,h0,w0), normalised, the last channel 1 where a pixel is masked -> (B,) mean L1 over masked pixels.

        Masked pixels are set to the mean colour, which is 0.
        """
        x, hidden = x[:, :3], x[:, 3:]
        dense = self.tower.encode_image(x * (1 - hidden)).dense
        pixels = torch.einsum("bdhw,dc->bchw", dense, self.pretraining["pixels"].to(dense.dtype))
        error = (F.pixel_shuffle(pixels.float(), self.tower.stride) - x).abs() * hidden
        return error.sum((1, 2, 3)) / (3 * hidden.sum((1, 2, 3))).clamp(min=1)

    def _embed(self, function: Callable, items: Tensor | Sequence[str]) -> Tensor:
        """Apply `function` to the items, `chunk` at a time; with several chunks no activations are kept."""
        if not self.chunk or len(items) <= self.chunk:
            return function(items)
        parts = [items[i : i + self.chunk] for i in range(0, len(items), self.chunk)]
        return torch.cat([checkpoint(function, part, use_reentrant=False) for part in parts])


def contrast(a: Tensor, b: Tensor, scale: Tensor | float, ids: Tensor | None = None) -> Tensor:
    """Symmetric contrastive loss over the batches of all processes (InfoNCE, Radford et al. 2021).

    Args:
        a, b: (B,D) unit vectors of this process; row i of `a` and row i of `b` are a positive pair.
        scale: 1 / temperature.
        ids: (B,) rows with the same id are not negatives of each other.

    Returns:
        The mean over the rows of this process. Its gradient also reaches the vectors of the other processes, so the
        average over processes, as DDP takes it, is the gradient of the whole batch.

    >>> round(float(contrast(torch.eye(2), torch.eye(2), scale=1.0)), 4)
    0.3133
    """
    all_a, all_b = gathered(a), gathered(b)
    index = torch.arange(len(a), device=a.device) + comm.get_rank() * len(a)
    same = torch.zeros((len(a), len(all_a)), dtype=torch.bool, device=a.device)
    if ids is not None:
        same = ids[:, None] == gathered(ids)
        same[torch.arange(len(a)), index] = False
    losses = [
        F.cross_entropy((scale * own @ others.T).masked_fill(same, float("-inf")), index)
        for own, others in ((a, all_b), (b, all_a))
    ]
    return sum(losses) / 2


def pairwise_sigmoid(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, ids: Tensor | None = None) -> Tensor:
    """Sigmoid loss over all pairs (SigLIP, Zhai et al. 2023).

    Args:
        a, b, scale, ids: see `contrast`.
        bias: added to every logit.

    Returns:
        The sum over pairs, divided by B; gradient as in `contrast`.
    """
    others = gathered(b)
    index = torch.arange(len(a), device=a.device) + comm.get_rank() * len(a)
    sign = -torch.ones((len(a), len(others)), device=a.device)  # 1 for a positive pair
    sign[torch.arange(len(a)), index] = 1
    each = -F.logsigmoid(sign * (scale * a @ others.T + bias))
    if ids is not None:
        each = each.masked_fill((ids[:, None] == gathered(ids)) & (sign < 0), 0.0)
    return each.sum(1).mean()


def gathered(x: Tensor) -> Tensor:
    """Gather (B,...) from all processes to (N,...), in the order of their ranks; keeps gradients."""
    if comm.get_world_size() == 1:
        return x
    if x.is_floating_point():
        return torch.cat(distributed.all_gather(x.contiguous()))
    parts = [torch.empty_like(x) for _ in range(comm.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)
