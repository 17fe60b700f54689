"""How many: a map of density whose sum over the image is the number.

Alphabet: B images, D embedding, G cells in each direction, M numbers, K marked objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skysense_o.modeling import Features
from skysense_o.vqa.vqa_model import choice_loss

CELLS = 32
"""Cells of the map in each direction: 8 pixels where the VQA model sees 256, and a car at 0.3 m has about two."""
MARKED = 3.0
"""Weight of the loss on marked objects beside that on their number."""


class Counter(nn.Module):
    """A question and a tower's maps -> a map of density (Lempitsky and Zisserman 2010) -> scores over numbers.

    The map's sum is compared with each number on the scale of square roots, on which a Poisson count varies alike
    whatever its mean. How sharply, and which numbers people prefer to say, the question decides.
    """

    def __init__(
        self, channels: Sequence[int], text_dim: int, answers: Sequence[str], width: int = 96, dropout: float = 0.2
    ) -> None:
        """
        Args:
            channels: of each map that `counting_maps` gives for images of one size: what is finer than a cell counts
                twice. text_dim: D.
            answers: as `normalise` writes them; the M numbers among them can be said.
            width: of everything between.
        """
        super().__init__()
        self.numbers = tuple(sorted({int(answer) for answer in answers if answer.isdecimal()}))
        self.norm = nn.ModuleList(nn.GroupNorm(1, c) for c in channels)
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.scale, self.shift = nn.Linear(text_dim, width), nn.Linear(text_dim, width)
        self.dropout = nn.Dropout2d(dropout)
        self.near, self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1)
        self.density = nn.Conv2d(width, 1, 1)
        self.sharpness, self.habit = nn.Linear(text_dim, 1), nn.Linear(text_dim, len(self.numbers))
        nn.init.constant_(self.density.bias, -4.5)  # so many cells sum to about ten to begin with
        for linear, bias in ((self.sharpness, 1.0), (self.habit, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)

    def forward(self, maps: Sequence[Tensor], text: Tensor) -> tuple[Tensor, Tensor]:
        """Maps as `counting_maps` gives them and (B,D) -> scores (B,M), density (B,G,G)."""
        projected = [project(norm(m)) for m, norm, project in zip(maps, self.norm, self.project, strict=True)]
        x = self.dropout(sum(F.interpolate(m, (CELLS, CELLS), mode="bilinear") for m in projected))
        x = F.gelu(x * (1 + self.scale(text)[..., None, None]) + self.shift(text)[..., None, None])
        x = x + F.gelu(self.mix(self.near(x)))
        density = F.softplus(self.density(x))[:, 0]
        root = density.sum(dim=(1, 2)).clamp(min=1e-2).sqrt()
        roots = torch.tensor(self.numbers, dtype=torch.float32, device=root.device).sqrt()
        distance = (root[:, None] - roots) ** 2
        return self.habit(text) - distance * self.sharpness(text).exp(), density

    def losses(
        self, scores: Tensor, density: Tensor, answers: Sequence[str], points: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """What `forward` gave, B answers, of which those that are no number teach nothing, and where the objects are
        marked their points -> "loss_count", "loss_density"."""
        places = {str(number): i for i, number in enumerate(self.numbers)}
        marked = [i for i, some in enumerate(points) if some is not None and answers[i] in places]
        targets = [marked_density(points[i].to(density.device), int(answers[i])) for i in marked]
        cells = density_loss(density[marked], torch.stack(targets)).sum() if marked else density.sum() * 0
        return {
            "loss_count": choice_loss(scores, [places.get(answer, -1) for answer in answers]),
            "loss_density": MARKED * cells / len(answers),
        }


def counting_maps(seen: Features) -> list[Tensor]:
    """What the counter reads: all maps of a tower, and its stages where it shows them; none finer than G x G."""
    maps = []
    for m in (seen.dense, *seen.pyramid, *seen.stages):
        m = m.float()
        if min(m.shape[-2:]) > CELLS:  # a mean hides what is smaller than a cell, a maximum does not
            m = torch.cat([F.adaptive_avg_pool2d(m, CELLS), F.adaptive_max_pool2d(m, CELLS)], 1)
        maps.append(m)
    return maps


def marked_density(points: Tensor, number: float) -> Tensor:
    """Points (K,2), x before y, as shares of the image's sides -> (G,G) of sum `number`: a Gaussian of a cell's width
    each. People count some kinds with more care than others (houses cut by the border), so their number is the sum;
    0 where there are no points.
    """
    centres = (torch.arange(CELLS, device=points.device) + 0.5)[None]
    across, down = (torch.exp(-((centres - CELLS * points[:, i, None]) ** 2) / 2) for i in (0, 1))
    across, down = across / across.sum(1, keepdim=True), down / down.sum(1, keepdim=True)
    return down.T @ across * (number / max(len(points), 1))


def density_loss(density: Tensor, target: Tensor) -> Tensor:
    """Poisson's negative log-likelihood, (B,G,G) each -> (B,); by the root of the number, lest crowds say all."""
    cells = density - target * density.clamp(min=1e-6).log()
    return cells.sum(dim=(1, 2)) / (1 + target.sum(dim=(1, 2))).sqrt()
