"""Visual question answering without a language model: question and image -> scores over a list of answers.

Shape letters: B images, A answers, D embedding, N grid cells of the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from skysense_o import geometry
from skysense_o.byte_cache import byte_cache
from skysense_o.modeling import Features, Tower, build_tower
from skysense_o.sample import Sample
from skysense_o.text_bank import TextBank
from skysense_o.vocabulary import Vocabulary
from skysense_o.vqa.counter import Counter, counting_maps
from skysense_o.vqa.vqa_model import choice_loss, normalise, squared

KEPT_BYTES = 4 * 2**30
"""Limit, in bytes, of the cached tower features of training images. An image takes 1 MiB with a counter, else 55 KB."""
HOW_MANY = re.compile(r"\s*(how many|what is the number of)\b", re.IGNORECASE)


@META_ARCH_REGISTRY.register()
class EmbeddedVQA(nn.Module):
    """Scores a fixed list of answers from the features of a frozen tower on a grid.

    The question attends to the grid cells, and also sums the cells that match the question. A two-layer head scores
    the answers.
    If the best answer is a number and there is a counter, the counter decides on the number.
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
            tower: encodes images and questions; frozen, so each training image is encoded once.
            answers: A normalised answers.
            side: images are resized to this square, in pixels.
            width: hidden channels.
            grid: side of the grid; N = grid x grid.
            dropout: dropout rate of the head.
            counting: add a counter for the numbers among the answers.
            templates: prompt templates for classification of whole images.

        Raises:
            ValueError: there are no answers, or the counter cannot use this `side`.
        """
        super().__init__()
        if not answers:
            raise ValueError("MODEL.VQA.ANSWERS is empty: train on questions, or give weights that hold them")
        self.tower, self.text_bank = tower.requires_grad_(False), TextBank()
        self.answers, self.side, self.grid = tuple(answers), side, grid
        self._index_of = {answer: i for i, answer in enumerate(self.answers)}
        self._cache = byte_cache(KEPT_BYTES)  # file name -> maps, see `_cached`
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
            input_side = tower.input_size or side
            if input_side % tower.divisor:  # padding would shift the cells of the map relative to the annotated points
                raise ValueError(
                    f"with MODEL.VQA.COUNTING, the side of the image is {input_side}, but this tower needs a multiple"
                    f" of {tower.divisor}: set MODEL.VQA.SIDE to {max(1, round(side / tower.divisor)) * tower.divisor}"
                )
            with torch.no_grad():  # a trial run that gives the number of channels; also works on the meta device
                features = tower.encode_image(
                    torch.zeros(1, 3, input_side, input_side, device=next(tower.parameters()).device)
                )
            self.counter = Counter([m.shape[1] for m in counting_maps(features)], tower.dim, answers)

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
        """Compute the losses in training, the answers in inference.

        Args:
            samples: B samples with `question`; in training also `answer` and, for annotated objects to count, `points`.
                An answer that is not in the list is left out of the loss.

        Returns:
            "loss_answer", and with a counter "loss_count" and "loss_density"; or B answers.
        """
        images, questions = [s["image"] for s in samples], [s["question"] for s in samples]
        if not self.training:
            return self.answer(images, questions)
        (cells, *maps), text = self._cached(samples), self._encode(questions)
        answers = [normalise(s["answer"]) for s in samples]
        truth = [self._index_of.get(answer, -1) for answer in answers]
        losses = {"loss_answer": choice_loss(self.scores(cells, text), truth, smoothing=0.05)}
        if self.counter is not None:
            points = [s.get("points") for s in samples]
            losses.update(self.counter.losses(*self.counter(maps, text), answers, points))
        return losses

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], questions: Sequence[str]) -> list[str]:
        """Answer one question per image; see `VQAModel.answer`. "How many ...?" is not answered by yes or no."""
        different = {id(image): image for image in images}  # an image with several questions is encoded once
        row = {key: i for i, key in enumerate(different)}
        cells = self.grid_features(self.encode_images(list(different.values())))
        text = self._encode(questions)
        scores = self.scores(cells[[row[id(image)] for image in images]], text)
        yes_no = torch.tensor([answer in ("yes", "no") for answer in self.answers], device=scores.device)
        how_many = torch.tensor([bool(HOW_MANY.match(question)) for question in questions], device=scores.device)
        if not yes_no.all():
            scores = scores.masked_fill(how_many[:, None] & yes_no, -torch.inf)
        best = scores.argmax(1).tolist()
        answers = [self.answers[i] for i in best]
        counted = [i for i, answer in enumerate(answers) if answer.isdecimal()] if self.counter is not None else []
        if counted:
            for i, number in zip(counted, self.count([images[i] for i in counted], text[counted])):
                answers[i] = str(number)
        return answers

    @torch.no_grad()
    def count(self, images: Sequence[Tensor], text: Tensor) -> list[int]:
        """Count objects, averaged over the four rotations of each image by multiples of 90 degrees.

        Args:
            images: B, uint8 (3,H,W).
            text: (B,D), the questions.

        Returns:
            B numbers, each one of the counter's.
        """
        shares = torch.zeros(len(images), len(self.counter.numbers), device=self.device)
        for turn in range(4):
            maps = counting_maps(self.encode_images([torch.rot90(image, turn, (1, 2)) for image in images]))
            shares += self.counter(maps, text)[0].softmax(1)
        return [self.counter.numbers[n] for n in shares.argmax(1).tolist()]

    @torch.no_grad()
    def encode_images(self, images: Sequence[Tensor]) -> Features:
        """B images, uint8 (3,H,W) -> features of the tower, from images resized to the square."""
        x, _ = geometry.prepare([squared(image, self.side) for image in images], self.tower)
        with torch.autocast(x.device.type, enabled=False):
            return self.tower.encode_image(x.float())

    def grid_features(self, features: Features) -> Tensor:
        """Pool all maps to the grid by mean, and the pyramid also by maximum -> (B,N,channels)."""
        maps = [F.adaptive_avg_pool2d(m.float(), self.grid) for m in (features.dense, *features.pyramid)]
        maps += [F.adaptive_max_pool2d(m.float(), self.grid) for m in features.pyramid]
        return torch.cat(maps, 1).flatten(2).transpose(1, 2)

    def scores(self, cells: Tensor, text: Tensor) -> Tensor:
        """Grid features (B,N,channels) and questions (B,D) -> scores of the answers (B,A)."""
        query = self.question(text)
        keys = self.project(self.norm(cells)) + self.position
        attended, _ = self.attention(query[:, None], keys, keys, need_weights=False)
        gates = (self.fits(keys) * query[:, None]).sigmoid()  # unlike attention weights, gates need not sum to 1
        matched = (gates * self.value(keys)).sum(1) / self.grid
        return self.head(torch.cat([query, attended[:, 0], matched, keys.mean(1) * query], 1))

    def _encode(self, questions: Sequence[str]) -> Tensor:
        """B questions -> (B,D). The tower is frozen, so the cache is used in training too.

        With gradients enabled, the text bank encodes each string by itself, because a resumed run must get the same
        vectors. In a batch, rounding errors would depend on the other questions.
        """
        vocabularies = [Vocabulary((q,), ((q,),), (False,)) for q in questions]
        return self.text_bank(self.tower, vocabularies, ("{}",))[0][:, 0, 0].float()

    def _cached(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Grid features of training images, then the maps of the counter if there is one; cached in half precision.

        The tower is frozen, so each image is encoded once, as long as the cache fits in KEPT_BYTES. Images are encoded
        one by one, because rounding errors depend on the batch, and a resumed run must get the same features.
        """
        batch: dict[str, list[Tensor]] = {}
        for sample in samples:
            name = sample["file_name"]
            if name in batch:
                continue
            if name in self._cache:
                batch[name] = self._cache[name]
                continue
            features = self.encode_images([sample["image"]])
            maps = [self.grid_features(features), *(counting_maps(features) if self.counter is not None else ())]
            batch[name] = [m[0].half().cpu() for m in maps]
            with suppress(ValueError):  # the value is larger than the whole cache
                self._cache[name] = batch[name]
        rows = zip(*(batch[s["file_name"]] for s in samples))
        # In float32, because autocast cannot stack half-precision tensors.
        return [torch.stack([m.float() for m in row]).to(self.device) for row in rows]
