"""Masks from any image-text tower without training: cosines of its dense features with the words.

Shape letters: B images, T phrases, P templates, D embedding, h w grid, H W finer grid, s = H / h.

Steps, each with its source: subtract the global token from the features (Li et al. 2025, SegEarth-OV), average cells
that a self-supervised ViT finds similar (Lan et al. 2024, ProxyCLIP), upsample along the image's edges (Kopf et al.
2007), softmax over the phrases. MODEL.TOWER.OPEN_CLIP chooses the attention that computes the features.
"""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from skysense_o.modeling.decoder import MaskDecoder, Queries
from skysense_o.modeling.tower import Features, Tower

UPSAMPLING = ("bilinear", "bilateral")
RADIUS = 2
"""Each pixel of the finer grid is a weighted mean of the cells up to this distance from it, in cells."""


@SEM_SEG_HEADS_REGISTRY.register()
class TrainingFreeHead(MaskDecoder):
    """Compares each cell of the feature map with each phrase by cosine, without training; then a softmax over phrases.

    So a phrase's probability depends on the other phrases of the request, above all on the background words. The
    sigmoid of the returned logits is that softmax.
    """

    takes_prompts = False
    installed = ("affinity.",)

    @configurable
    def __init__(
        self,
        *,
        temperature: float = 0.02,
        global_bias: float = 0.3,
        upsampling: str = "bilinear",
        scale: int = 4,
        spatial_sigma: float = 0.7,
        colour_sigma: float = 0.4,
        affinity: nn.Module | None = None,
    ) -> None:
        """
        Args:
            temperature: divides the cosines. global_bias: factor of the normalised global token, which is subtracted
                from each normalised cell; 0: nothing is subtracted.
            upsampling: bilinear (done later, when masks are resized) or bilateral, to a grid `scale` times finer.
            spatial_sigma: sigma of the bilateral filter in cells. colour_sigma: sigma in units of the normalised image.
            affinity: averages similar cells, see `Affinity`; None: no averaging.

        Raises:
            ValueError: the upsampling is unknown, or a number is not above 0.
        """
        super().__init__()
        if upsampling not in UPSAMPLING:
            raise ValueError(f"unknown TRAINING_FREE.UPSAMPLING {upsampling!r}: choose one of {', '.join(UPSAMPLING)}")
        if min(temperature, spatial_sigma, colour_sigma, scale) <= 0:
            raise ValueError("TRAINING_FREE: TEMPERATURE, SPATIAL_SIGMA, COLOUR_SIGMA and SCALE must be above 0")
        self.temperature, self.global_bias, self.affinity = temperature, global_bias, affinity
        self.upscale = scale if upsampling == "bilateral" else 1
        self.spatial_sigma, self.colour_sigma = spatial_sigma, colour_sigma

    @classmethod
    def from_config(cls, cfg, tower: Tower) -> dict:
        keys = cfg.MODEL.SEM_SEG_HEAD.TRAINING_FREE
        affinity = None
        if keys.AFFINITY:
            affinity = Affinity.of(keys.AFFINITY, tower, keys.AFFINITY_SHIFT, keys.AFFINITY_SCALE)
        return {
            "temperature": keys.TEMPERATURE,
            "global_bias": keys.GLOBAL_BIAS,
            "upsampling": keys.UPSAMPLING,
            "scale": keys.SCALE,
            "spatial_sigma": keys.SPATIAL_SIGMA,
            "colour_sigma": keys.COLOUR_SIGMA,
            "affinity": affinity,
        }

    def forward(
        self, features: Features, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See MaskDecoder; presence is None. Phrases compete, so all are decoded at once, whatever `chunk` is."""
        return self.decode(self.refine(features), queries, chunk)

    def refine(self, features: Features) -> Features:
        """Normalise the cells, average similar cells (`Affinity`), subtract `global_bias` times the global token."""
        dense = features.dense.float()
        if self.affinity is not None:
            dense = self.affinity(features.image, dense)
        cells = F.normalize(dense, dim=1, eps=1e-6)
        if self.global_bias:
            shared = F.normalize(features.pooled.float(), dim=1, eps=1e-6)[..., None, None]
            cells = F.normalize(cells - self.global_bias * shared, dim=1, eps=1e-6)
        return Features(cells, (), features.pooled, image=features.image)

    def decode(
        self, image_embedding: Features, queries: Queries, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Decode as `forward` does, but from an image embedding that `refine` has returned.

        Raises:
            ValueError: there is only one phrase, so there is nothing to compare it with.
        """
        self.check(queries)
        if (queries.valid.sum(1) < 2).any():
            raise ValueError(
                "TrainingFreeHead compares words, and there is only one: add background words, such as --background"
                ' "ground,vegetation,building,water"'
            )
        words = F.normalize(queries.text.float().mean(2), dim=-1, eps=1e-6)
        cosines = torch.einsum("btd,bdhw->bthw", words, image_embedding.dense)
        if self.upscale > 1:
            cosines = joint_bilateral(
                cosines, image_embedding.image.float(), self.upscale, self.spatial_sigma, self.colour_sigma
            )
        scores = (cosines / self.temperature).masked_fill(~queries.valid[..., None, None], -torch.inf)
        log_p = F.log_softmax(scores, dim=1).clamp(min=-60.0, max=-1e-6)
        return log_p - torch.log(-torch.expm1(log_p)), None, None


class Affinity(nn.Module):
    """Replace each cell by the mean of the cells that a self-supervised ViT (DINOv2, DINOv3) finds similar.

    Let s = scale * (cosine - shift * m), where m is the mean cosine of all pairs of cells of the image. The weights are
    the softmax of s over the cell itself and all cells with s >= 0.
    """

    def __init__(
        self, vit: nn.Module, tower_look: tuple[Tensor, Tensor], look: tuple[Tensor, Tensor], shift: float, scale: float
    ) -> None:
        """vit: a timm model that accepts any input size. tower_look, look: the pixel mean and std, (3,1,1) each
        in 0..255, that the tower and the ViT expect.
        """
        super().__init__()
        self.vit, self.shift, self.scale = vit.eval().requires_grad_(False), shift, scale
        self.patch = vit.patch_embed.patch_size[0]
        for name, value in zip(("tower_mean", "tower_std", "mean", "std"), (*tower_look, *look)):
            self.register_buffer(name, value.detach().clone(), persistent=False)

    @classmethod
    def of(cls, name: str, tower: Tower, shift: float, scale: float) -> Affinity:
        """Load a ViT of timm with its weights.

        Raises:
            ValueError: timm has no such model, or its weights are neither in the cache nor downloadable.
        """
        try:
            with torch.device("cpu"):
                vit = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
        except (RuntimeError, OSError, TypeError, ValueError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"TRAINING_FREE.AFFINITY {name!r} cannot be loaded ({why}): it needs a ViT of timm, such as"
                " vit_small_patch14_dinov2, in the local cache or with a network; leave it empty to do without"
            ) from error
        facts = timm.data.resolve_data_config(model=vit)
        look = tuple(255 * torch.tensor(facts[key], device="cpu").view(3, 1, 1) for key in ("mean", "std"))
        return cls(vit, (tower.pixel_mean, tower.pixel_std), look, shift, scale)

    @torch.no_grad()
    def forward(self, image: Tensor, dense: Tensor) -> Tensor:
        """Average `dense` (B,D,h,w) over similar cells. `image`: (B,3,h0,w0), normalised for the tower."""
        h, w = dense.shape[-2:]
        shown = (image.float() * self.tower_std + self.tower_mean - self.mean) / self.std
        size = (h * self.patch, w * self.patch)  # at this size, the ViT has the same grid of cells as the tower
        shown = F.interpolate(shown, size=size, mode="bilinear", align_corners=False, antialias=True)
        tokens = F.normalize(self.vit.forward_features(shown)[:, self.vit.num_prefix_tokens :].float(), dim=-1)
        alike = tokens @ tokens.transpose(1, 2)
        excess = self.scale * (alike - self.shift * alike.mean((1, 2), keepdim=True))
        own = torch.eye(h * w, dtype=torch.bool, device=dense.device)
        weights = excess.masked_fill((excess < 0) & ~own, -torch.inf).softmax(-1)
        return torch.einsum("bij,bdj->bdi", weights, dense.flatten(2)).unflatten(2, (h, w))


def joint_bilateral(maps: Tensor, image: Tensor, scale: int, spatial_sigma: float, colour_sigma: float) -> Tensor:
    """Upsample maps along the edges of an image (joint bilateral upsampling, Kopf et al. 2007).

    Args:
        maps: (B,T,h,w). image: (B,3,h0,w0) of the same area, at least as fine as the result.

    Returns:
        (B,T,h*scale,w*scale): means of the cells within `RADIUS`, weighted by their distance (sigma in cells) and by
        the difference of colour.
    """
    h, w = maps.shape[-2:]
    fine = F.adaptive_avg_pool2d(image, (h * scale, w * scale))
    coarse = F.adaptive_avg_pool2d(image, (h, w))
    (y, ny), (x, nx) = (_cells(n, scale, maps.device) for n in (h, w))
    total, weights = 0.0, 0.0
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            rows, cols = ny + dy, nx + dx
            inside = ((rows >= 0) & (rows < h))[:, None] & ((cols >= 0) & (cols < w))
            far = ((rows - y) ** 2)[:, None] + (cols - x) ** 2
            rows, cols = rows.clamp(0, h - 1), cols.clamp(0, w - 1)
            colour = ((coarse[:, :, rows][..., cols] - fine) ** 2).sum(1, keepdim=True)
            weight = torch.exp(-far / (2 * spatial_sigma**2) - colour / (2 * colour_sigma**2)) * inside
            total, weights = total + weight * maps[:, :, rows][..., cols], weights + weight
    nearest = maps[:, :, ny][..., nx]  # used for pixels whose colour resembles that of no cell
    return torch.where(weights > 1e-12, total / weights.clamp(min=1e-12), nearest)


def _cells(n: int, scale: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each pixel of the finer grid: its position in cells (centres are whole numbers), and the cell around it."""
    fine = torch.arange(n * scale, device=device)
    return (fine + 0.5) / scale - 0.5, fine // scale
