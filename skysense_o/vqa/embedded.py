"""Answers without a language model: question and image -> scores over a list of answers.

Alphabet: B images, A answers, D embedding, N places of the image, W width, G cells of the counter, M numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from skysense_o import geometry
from skysense_o.modeling import Features, Tower, build_tower
from skysense_o.sample import Sample
from skysense_o.vocabulary import TextBank, Vocabulary
from skysense_o.vqa.counter import Counter, counting_maps
from skysense_o.vqa.vqa_model import choice_loss, normalise, squared

KEPT_BYTES = 4 * 2**30
"""Of what the tower saw of training images: 1 MiB each with a counter, 55 KB without."""


@META_ARCH_REGISTRY.register()
class EmbeddedVQA(nn.Module):
    """The question asks a grid of places of a frozen tower's features: it attends to them, and adds up those that
    fit; a two-layer head scores the answers. Where the best one is a number, the counter, if there is one, says which.
    """

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
        counting: bool = False,
        templates: Sequence[str] = ("{}",),
    ) -> None:
        """
        Args:
            tower: sees images and reads questions; it stays as it is, so each image is seen once in training.
            answers: A of them, as `normalise` writes them. side: images are resized to this square.
            grid: they are read at grid x grid places.
            counting: with a counter, which can say the numbers among the answers; for this `side`.
            templates: in which its tower is asked for the class of a whole image.
        """
        super().__init__()
        if not answers:
            raise ValueError("MODEL.VQA.ANSWERS is empty: train on questions, or give weights that hold them")
        self.tower, self.text_bank = tower.requires_grad_(False), TextBank()
        self.answers, self.side, self.grid = tuple(answers), side, grid
        self._place = {answer: i for i, answer in enumerate(self.answers)}
        self._seen: dict[str, list[Tensor]] = {}
        self._bytes = 0
        self.templates = tuple(templates)
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
        self.counter = None
        if counting:
            seen_side = tower.input_size or side
            if seen_side % tower.divisor:  # marks are shares of the image, the map's cells of what is padded
                raise ValueError(
                    f"MODEL.VQA.SIDE {side} with COUNTING: this tower needs a multiple of {tower.divisor}, such as"
                    f" {max(1, round(side / tower.divisor)) * tower.divisor}"
                )
            with torch.no_grad():  # how many channels it will see; on whatever device, meta too
                seen = tower.encode_image(
                    torch.zeros(1, 3, seen_side, seen_side, device=next(tower.parameters()).device)
                )
            self.counter = Counter([m.shape[1] for m in counting_maps(seen)], tower.dim, answers)

    @classmethod
    def from_config(cls, cfg) -> dict:
        c = cfg.MODEL.VQA
        return {
            "tower": build_tower(cfg),
            "answers": c.ANSWERS,
            "side": c.SIDE,
            "width": c.WIDTH,
            "grid": c.GRID,
            "dropout": c.DROPOUT,
            "counting": c.COUNTING,
            "templates": cfg.MODEL.TEMPLATES,
        }

    @property
    def device(self) -> torch.device:
        return self.tower.pixel_mean.device

    def train(self, mode: bool = True) -> EmbeddedVQA:
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[str]:
        """Training: samples with `question` and `answer`, and `points` where what is to be counted is marked -> losses:
        "loss_answer"; with a counter also "loss_count" and "loss_density". Inference: the answers.

        An answer that is not in the list teaches nothing.
        """
        images, questions = [s["image"] for s in samples], [s["question"] for s in samples]
        if not self.training:
            return self.answer(images, questions)
        (places, *maps), text = self._once(samples), self._read(questions)
        right = [normalise(s["answer"]) for s in samples]
        truth = [self._place.get(answer, -1) for answer in right]
        losses = {"loss_answer": choice_loss(self.scores(places, text), truth, smoothing=0.05)}
        if self.counter is not None:
            points = [s.get("points") for s in samples]
            losses.update(self.counter.losses(*self.counter(maps, text), right, points))
        return losses

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """See `VQAModel`."""
        different = {id(image): image for image in images}  # several questions of one image: it is seen once
        row = {key: i for i, key in enumerate(different)}
        places = self.places(self.see(list(different.values())))
        text = self._read(questions)
        said = self.scores(places[[row[id(image)] for image in images]], text).argmax(1).tolist()
        answers = [self.answers[i] for i in said]
        asked = [i for i, answer in enumerate(answers) if answer.isdecimal()] if self.counter is not None else []
        if asked:
            for i, number in zip(asked, self.count([images[i] for i in asked], text[asked])):
                answers[i] = str(number)
        return answers

    @torch.no_grad()
    def count(self, images: Sequence[Tensor], text: Tensor) -> list[int]:
        """uint8 (3,H,W) each and their questions as (B,D) -> the number of what is asked for, of those that can be
        said; by the mean over four turns of an image, which change no number."""
        shares = torch.zeros(len(images), len(self.counter.numbers), device=self.device)
        for turn in range(4):
            maps = counting_maps(self.see([torch.rot90(image, turn, (1, 2)) for image in images]))
            shares += self.counter(maps, text)[0].softmax(1)
        return [self.counter.numbers[n] for n in shares.argmax(1).tolist()]

    @torch.no_grad()
    def see(self, images: Sequence[Tensor]) -> Features:
        """uint8 (3,H,W) each -> what the tower sees of them, squared."""
        x, _ = geometry.prepare([squared(image, self.side) for image in images], self.tower)
        with torch.autocast(x.device.type, enabled=False):
            return self.tower.encode_image(x.float())

    def places(self, seen: Features) -> Tensor:
        """-> (B,N,channels): the mean of each map over each place, the largest of the pyramid."""
        maps = [F.adaptive_avg_pool2d(m.float(), self.grid) for m in (seen.dense, *seen.pyramid)]
        maps += [F.adaptive_max_pool2d(m.float(), self.grid) for m in seen.pyramid]
        return torch.cat(maps, 1).flatten(2).transpose(1, 2)

    def scores(self, places: Tensor, text: Tensor) -> Tensor:
        """(B,N,channels) and the questions as (B,D) -> (B,A)."""
        ask = self.question(text)
        where = self.project(self.norm(places)) + self.position
        found, _ = self.attention(ask[:, None], where, where, need_weights=False)
        gates = (self.fits(where) * ask[:, None]).sigmoid()  # attention shares a sum of 1: it cannot add up
        fitting = (gates * self.value(where)).sum(1) / self.grid
        return self.head(torch.cat([ask, found[:, 0], fitting, where.mean(1) * ask], 1))

    @torch.no_grad()  # no gradient into the text, so its cache serves training too
    def _read(self, questions: Sequence[str]) -> Tensor:
        said = [Vocabulary((q,), ((q,),), (False,)) for q in questions]
        return self.text_bank(self.tower, said, ("{}",))[0][:, 0, 0].float()

    def _once(self, samples: Sequence[Sample]) -> list[Tensor]:
        """The places of images in training, then what the counter reads if there is one, in half precision.

        The tower never changes, so each is seen once, while what is kept fits in KEPT_BYTES. One by one, since the last
        bits depend on how many are seen at a time, and a resumed training has to see them again.
        """
        now = {}
        for sample in samples:
            name = sample["file_name"]
            if name in self._seen or name in now:
                continue
            seen = self.see([sample["image"]])
            maps = [self.places(seen), *(counting_maps(seen) if self.counter is not None else ())]
            now[name] = [m[0].half().cpu() for m in maps]
            size = sum(m.nbytes for m in now[name])
            if self._bytes + size <= KEPT_BYTES:
                self._seen[name], self._bytes = now[name], self._bytes + size
        rows = zip(*(self._seen.get(s["file_name"]) or now[s["file_name"]] for s in samples))
        return [torch.stack([m.float() for m in row]).to(self.device) for row in rows]  # autocast stacks no halves
