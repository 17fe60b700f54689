"""Answers without a language model: question and picture -> scores over a list of answers.

Alphabet: B pictures, A answers, D embedding, N places of the picture, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from skysense_o import geometry
from skysense_o.answering.answerer import normalise, squared
from skysense_o.modeling import Tower, build_tower
from skysense_o.sample import Sample
from skysense_o.vocabulary import TextBank, Vocabulary


@META_ARCH_REGISTRY.register()
class EmbeddedAnswerer(nn.Module):
    """The question asks a grid of places of a frozen tower's features: it attends to them, and counts those that
    fit; a two-layer head scores the answers."""

    @configurable
    def __init__(
        self,
        *,
        tower: Tower,
        answers: Sequence[str],
        side: int = 256,
        width: int = 256,
        grid: int = 8,
        dropout: float = 0.3,
    ) -> None:
        """
        Args:
            tower: sees pictures and reads questions; it stays as it is, so each picture is seen once in training.
            answers: A of them, as `normalise` writes them. side: pictures are resized to this square.
            grid: they are read at grid x grid places.
        """
        super().__init__()
        if not answers:
            raise ValueError("MODEL.ANSWERER.ANSWERS is empty: train on questions, or give weights that hold them")
        self.tower, self.text_bank = tower.requires_grad_(False), TextBank()
        self.answers, self.side, self.grid = tuple(answers), side, grid
        self._place = {answer: i for i, answer in enumerate(self.answers)}
        self._seen: dict[str, Tensor] = {}
        channels = tower.dim + 2 * sum(tower.pyramid_channels)
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, width)
        self.position = nn.Parameter(torch.randn(grid * grid, width) * 0.02)
        self.question = nn.Linear(tower.dim, width)
        self.attention = nn.MultiheadAttention(width, 4, dropout=0.1, batch_first=True)
        self.fits, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Sequential(
            nn.LayerNorm(4 * width), nn.Dropout(dropout), nn.Linear(4 * width, 2 * width), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(2 * width, len(answers)),
        )  # fmt: skip

    @classmethod
    def from_config(cls, cfg) -> dict:
        c = cfg.MODEL.ANSWERER
        return {
            "tower": build_tower(cfg),
            "answers": c.ANSWERS,
            "side": c.SIDE,
            "width": c.WIDTH,
            "grid": c.GRID,
            "dropout": c.DROPOUT,
        }

    @property
    def device(self) -> torch.device:
        return self.tower.pixel_mean.device

    def train(self, mode: bool = True) -> EmbeddedAnswerer:
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[str]:
        """Training: samples with `question` and `answer` -> {"loss_answer"}. Inference: the answers.

        An answer that is not in the list teaches nothing.
        """
        images, questions = [s["image"] for s in samples], [s["question"] for s in samples]
        if not self.training:
            return self.answer(images, questions)
        scores = self.scores(self._once(samples), questions)
        truth = [self._place.get(normalise(s["answer"]), -1) for s in samples]
        loss = F.cross_entropy(
            scores.float(), torch.tensor(truth, device=self.device), ignore_index=-1, label_smoothing=0.05,
            reduction="sum",
        )  # fmt: skip
        return {"loss_answer": loss / max(1, sum(t >= 0 for t in truth))}

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """See `Answerer`."""
        different = {id(image): image for image in images}  # several questions of one picture: it is seen once
        seen = dict(zip(different, self.places(list(different.values()))))
        best = self.scores(torch.stack([seen[id(image)] for image in images]), questions).argmax(1)
        return [self.answers[i] for i in best.tolist()]

    @torch.no_grad()
    def places(self, images: Sequence[Tensor]) -> Tensor:
        """uint8 (3,H,W) each -> (B,N,channels): the mean of each map over each place, the largest of the pyramid."""
        x, _ = geometry.prepare([squared(image, self.side) for image in images], self.tower)
        with torch.autocast(x.device.type, enabled=False):
            seen = self.tower.encode_image(x.float())
        maps = [F.adaptive_avg_pool2d(m.float(), self.grid) for m in (seen.dense, *seen.pyramid)]
        maps += [F.adaptive_max_pool2d(m.float(), self.grid) for m in seen.pyramid]
        return torch.cat(maps, 1).flatten(2).transpose(1, 2)

    def scores(self, places: Tensor, questions: Sequence[str]) -> Tensor:
        """(B,N,channels) and B questions -> (B,A)."""
        said = [Vocabulary((q,), ((q,),), (False,)) for q in questions]
        with torch.no_grad():  # no gradient into the text, so its cache serves training too
            text, _ = self.text_bank(self.tower, said, ("{}",))
        ask = self.question(text[:, 0, 0].float())
        where = self.project(self.norm(places)) + self.position
        found, _ = self.attention(ask[:, None], where, where, need_weights=False)
        gates = (self.fits(where) * ask[:, None]).sigmoid()  # attention shares a sum of 1: it cannot count
        counted = (gates * self.value(where)).sum(1) / self.grid
        return self.head(torch.cat([ask, found[:, 0], counted, where.mean(1) * ask], 1))

    def _once(self, samples: Sequence[Sample]) -> Tensor:
        """The places of pictures in training, kept in half precision: the tower never changes, so each is seen once."""
        new = {s["file_name"]: s["image"] for s in samples if s["file_name"] not in self._seen}
        if new:
            self._seen.update(zip(new, self.places(list(new.values())).half().cpu()))
        return torch.stack([self._seen[s["file_name"]] for s in samples]).to(self.device).float()
