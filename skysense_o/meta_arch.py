"""SkySenseO, the one meta-architecture.

Alphabet: B images, T phrases, C names, P templates, D embedding, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from skysense_o import geometry, losses
from skysense_o.modeling import MaskDecoder, Queries, RegionProjection, Tower, build_tower
from skysense_o.modeling.sam_head import Refined
from skysense_o.objective import Objective
from skysense_o.prompt_objective import PromptObjective
from skysense_o.sample import IGNORE, Prediction, Reduce, Sample
from skysense_o.vocabulary import TextBank, Vocabulary


@META_ARCH_REGISTRY.register()
class SkySenseO(nn.Module):
    """A tower that sees and reads, and a decoder that draws one mask per phrase."""

    @configurable
    def __init__(
        self,
        *,
        tower: Tower,
        sem_seg_head: MaskDecoder,
        templates: Sequence[str] = ("{}",),
        objective: Objective | None = None,
        prompt_objective: PromptObjective | None = None,
        region_projection: RegionProjection | None = None,
        text_noise: float = 0.0,
        phrase_chunk: int = 256,
        published_quirks: bool = False,
        gsd: float = 0.0,
    ) -> None:
        """
        Args:
            tower, sem_seg_head: the two parts.
            templates: P sentences with one "{}" each; a phrase's embedding is their mean.
            objective, prompt_objective: what training minimises, for words and for clicks and boxes.
            region_projection: the published code's region map; None: regions are pooled from the dense features.
            text_noise: expected length of the noise added to unit text vectors in training.
            phrase_chunk: phrases decoded at a time in inference.
            published_quirks: see `Frame.restore`.
            gsd: metres a pixel that the weights were trained at; 0: not known. For the record, it changes nothing.
        """
        super().__init__()
        self.tower, self.sem_seg_head = tower, sem_seg_head
        self.templates, self.text_bank = tuple(templates), TextBank()
        self.objective, self.prompt_objective = objective, prompt_objective
        self.region_projection, self.text_noise = region_projection, text_noise
        self.phrase_chunk, self.published_quirks, self.gsd = phrase_chunk, published_quirks, gsd

    @classmethod
    def from_config(cls, cfg) -> dict:
        tower = build_tower(cfg)
        objective, loss, upscale = Objective.from_config(cfg), cfg.MODEL.LOSS, cfg.MODEL.LOSS.REGION_UPSCALE
        return {
            "tower": tower,
            "sem_seg_head": SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, tower),
            "templates": cfg.MODEL.TEMPLATES,
            "objective": objective,
            "prompt_objective": PromptObjective(loss.PROMPT, loss.PROMPT_ROUNDS) if loss.PROMPT else None,
            "region_projection": RegionProjection(tower.dim, upscale) if upscale and objective.needs_regions else None,
            "text_noise": cfg.MODEL.TEXT_NOISE,
            "phrase_chunk": cfg.MODEL.SEM_SEG_HEAD.PHRASE_CHUNK,
            "published_quirks": cfg.MODEL.PUBLISHED_QUIRKS,
            "gsd": cfg.MODEL.GSD,
        }

    @property
    def device(self) -> torch.device:
        return self.tower.pixel_mean.device

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[Prediction]:
        """Training: samples with labels -> {name of a loss: scalar}. Inference: samples -> labels and scores."""
        if self.training:
            return self.losses(samples)
        return self.predict(samples, "labels")

    @property
    def stride(self) -> int:
        """Pixels of the prepared image a cell of the masks."""
        return self.tower.stride // self.sem_seg_head.upscale

    @torch.no_grad()
    def predict_windows(self, windows: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Windows of one size, uint8 (B,3,H,W), sides multiples of the divisor or the tower's fixed square.

        Returns:
            (B,C,h,w) probabilities of the names at the masks' own grid, H / `stride` cells high: to be blended there.
        """
        x, _ = geometry.prepare(list(windows), self.tower)
        text, valid = self.text_bank(self.tower, [vocabulary], self.templates)
        queries = Queries(text.expand(len(x), -1, -1, -1), valid.expand(len(x), -1))
        logits, _, _ = self.sem_seg_head(self.tower.encode_image(x), queries, self.phrase_chunk)
        owner, names = vocabulary.owner, len(vocabulary)
        return torch.stack([geometry.best_of_phrases(masks.float().sigmoid_(), owner, names) for masks in logits])

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], reduce: Reduce) -> list[Prediction]:
        """Any sizes, any vocabularies. Samples that share a padded size run together; no result depends on it."""
        frames = [geometry.frame_of(tuple(sample["image"].shape[-2:]), self.tower) for sample in samples]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, frame in enumerate(frames):
            groups.setdefault(frame.padded, []).append(index)
        predictions: dict[int, Prediction] = {}
        for indices in groups.values():
            predictions.update(zip(indices, self._predict_group([samples[i] for i in indices], reduce)))
        return [predictions[i] for i in range(len(samples))]

    def _predict_group(self, samples: Sequence[Sample], reduce: Reduce) -> list[Prediction]:
        x, frames = geometry.prepare([sample["image"] for sample in samples], self.tower)
        refined = self.sem_seg_head.refine(self.tower.encode_image(x))
        sizes = [(s.get("height", f.size[0]), s.get("width", f.size[1])) for s, f in zip(samples, frames)]
        return self.ask(refined, frames, [s["vocabulary"] for s in samples], sizes, reduce)

    @torch.no_grad()
    def ask(
        self,
        refined: object,
        frames: Sequence[geometry.Frame],
        vocabularies: Sequence[Vocabulary],
        sizes: Sequence[tuple[int, int]],
        reduce: Reduce,
    ) -> list[Prediction]:
        """Words asked of images that the decoder has refined: one vocabulary, frame and size (H,W) wanted an image."""
        text, valid = self.text_bank(self.tower, vocabularies, self.templates)
        logits, presence, _ = self.sem_seg_head.decode(refined, Queries(text, valid), self.phrase_chunk)
        predictions = []
        for b, (vocabulary, frame, size) in enumerate(zip(vocabularies, frames, sizes)):
            owner, names = vocabulary.owner, len(vocabulary)
            prediction = frame.restore(logits[b, : len(owner)], owner, names, size, reduce, self.published_quirks)
            if presence is not None:
                found = presence[b, : len(owner)].float().sigmoid()
                prediction["presence"] = geometry.best_of_phrases(found, owner, names)
            predictions.append(prediction)
        return predictions

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The weighted losses of a batch whose samples have `sem_seg` and one phrase a name."""
        x, frames = geometry.prepare([sample["image"] for sample in samples], self.tower)
        features = self.tower.encode_image(x)
        refined = self.sem_seg_head.refine(features)
        sem_seg = torch.stack([_padded_labels(s["sem_seg"], f).to(self.device) for s, f in zip(samples, frames)])
        terms: dict[str, Tensor] = {}
        if self.objective.weights:
            text, valid = self.text_bank(self.tower, [s["vocabulary"] for s in samples], self.templates)
            text = self._blur(text)
            logits, presence, _ = self.sem_seg_head.decode(refined, Queries(text, valid))
            regions = partial(self._regions, features.dense, sem_seg, text.shape[1])
            terms |= self.objective(samples, sem_seg, logits, presence, text, valid, regions)
        if self.prompt_objective is not None:
            terms |= self.prompt_objective(partial(self.draw, refined), samples, frames, sem_seg)
        return terms

    def draw(self, refined: Refined, points: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Clicks and boxes, see `Queries` -> logits (B,K,h',w') and predicted IoU (B,K); no words."""
        text = points.new_zeros((len(points), 0, len(self.templates), self.tower.dim))
        queries = Queries(text, text[..., 0, 0].bool(), points, labels, boxes)
        logits, _, quality = self.sem_seg_head.decode(refined, queries)
        return logits, quality

    def _regions(self, dense: Tensor, sem_seg: Tensor, names: int) -> Tensor:
        """(B,T,D) features of the names' regions, not normalised."""
        if self.region_projection is not None:
            return self.region_projection(dense.to(self.region_projection.mix.weight.dtype), sem_seg, names)
        return losses.pool_regions(dense, sem_seg, names)

    def _blur(self, text: Tensor) -> Tensor:
        """Unit vectors with Gaussian noise of expected length `text_noise`, normalised again."""
        if not self.text_noise:
            return text
        noise = torch.randn_like(text) * (self.text_noise / text.shape[-1] ** 0.5)
        return F.normalize(text + noise, dim=-1)


def _padded_labels(sem_seg: Tensor, frame: geometry.Frame) -> Tensor:
    """(H,W) labels -> the padded (H,W), where the padding is ignored."""
    bottom, right = frame.padded[0] - frame.size[0], frame.padded[1] - frame.size[1]
    return F.pad(sem_seg, (0, right, 0, bottom), value=IGNORE)
