"""Counting by a density map whose sum over the image is the count.

Shape letters: B images, D embedding, G cells in each direction, M numbers, K annotated objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skysense_o.modeling import Features
from skysense_o.vqa.vqa_model import choice_loss

CELLS = 32
"""G, number of cells of the density map in each direction. At an input of 256 x 256 pixels, a cell has 8 x 8 pixels,
and a car at 0.3 m per pixel fills two cells."""
MARKED = 3.0
"""Weight of the density loss, relative to the loss on the count."""


class Counter(nn.Module):
    """Predicts a density map from a question and the tower's maps, and from its sum the scores of all numbers.

    Density maps: Lempitsky and Zisserman 2010. The sum is compared with each number by the difference of their square
    roots, because the square root of a Poisson count has about the same variance for every mean. The question sets the
    sharpness of the comparison and a prior over numbers.

    >>> counter = Counter(channels=[8], text_dim=4, answers=["0", "1", "5", "yes"], width=8)
    >>> scores, density = counter([torch.zeros(1, 8, 16, 16)], torch.zeros(1, 4))
    >>> counter.numbers, tuple(scores.shape), tuple(density.shape)
    ((0, 1, 5), (1, 3), (1, 32, 32))
    """

    def __init__(
        self, channels: Sequence[int], text_dim: int, answers: Sequence[str], width: int = 96, dropout: float = 0.2
    ) -> None:
        """
        Args:
            channels: channels of each map of `counting_maps`; maps finer than the grid have twice as many.
            text_dim: dimension D of the embedding of the question.
            answers: normalised answers; the counter predicts the M numbers among these answers.
            width: number of hidden channels.
            dropout: dropout rate of whole channels.
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
        nn.init.constant_(self.density.bias, -4.5)  # at the start the sum over all cells is about ten
        for linear, bias in ((self.sharpness, 1.0), (self.habit, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)

    def forward(self, maps: Sequence[Tensor], text: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the scores of the numbers.

        Args:
            maps: maps made by `counting_maps`.
            text: (B,D), the questions.

        Returns:
            scores (B,M) and density (B,G,G).
        """
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
        """Compute the losses of the counter.

        Args:
            scores, density: outputs of `forward`.
            answers: B normalised answers; an answer that is not a number is left out.
            points: per image the locations of the objects (see `marked_density`), or None.

        Returns:
            "loss_count" and "loss_density".
        """
        index_of = {str(number): i for i, number in enumerate(self.numbers)}
        marked = [i for i, some in enumerate(points) if some is not None and answers[i] in index_of]
        targets = [marked_density(points[i].to(density.device), int(answers[i])) for i in marked]
        cells = density_loss(density[marked], torch.stack(targets)).sum() if marked else density.sum() * 0
        return {
            "loss_count": choice_loss(scores, [index_of.get(answer, -1) for answer in answers]),
            "loss_density": MARKED * cells / len(answers),
        }


def counting_maps(features: Features) -> list[Tensor]:
    """All maps of a tower as input of the counter; maps finer than G x G are pooled to G x G by mean and maximum."""
    maps = []
    for m in (features.dense, *features.pyramid, *features.stages):
        m = m.float()
        if min(m.shape[-2:]) > CELLS:  # the mean hides objects that are smaller than a cell, the maximum does not
            m = torch.cat([F.adaptive_avg_pool2d(m, CELLS), F.adaptive_max_pool2d(m, CELLS)], 1)
        maps.append(m)
    return maps


def marked_density(points: Tensor, number: float) -> Tensor:
    """The target density map: a Gaussian per object, with a standard deviation of one cell, scaled to the count.

    The count may differ from K, because annotators count some objects differently (houses cut by the border).

    Args:
        points: (K,2), x before y, in 0..1 of the image's sides.
        number: the count.

    Returns:
        (G,G) with sum `number`; zero without points.
    """
    centres = (torch.arange(CELLS, device=points.device) + 0.5)[None]
    across, down = (torch.exp(-((centres - CELLS * points[:, i, None]) ** 2) / 2) for i in (0, 1))
    across, down = across / across.sum(1, keepdim=True), down / down.sum(1, keepdim=True)
    return down.T @ across * (number / max(len(points), 1))


def density_loss(density: Tensor, target: Tensor) -> Tensor:
    """Poisson negative log-likelihood, (B,G,G) each -> (B,).

    It is divided by the square root of the count, so that images with many objects do not dominate.
    """
    cells = density - target * density.clamp(min=1e-6).log()
    return cells.sum(dim=(1, 2)) / (1 + target.sum(dim=(1, 2))).sqrt()
