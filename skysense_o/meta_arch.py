"""SkySenseO, the meta-architecture for segmentation with words, clicks and boxes.

Shape letters: B images, T phrases, C classes, P templates, D embedding, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from skysense_o import geometry, losses
from skysense_o.correction_objective import CorrectionObjective
from skysense_o.kinds import Kinds
from skysense_o.modeling import Features, MaskDecoder, Queries, RegionProjection, Tower, build_tower
from skysense_o.modeling.sam_head import ImageEmbedding
from skysense_o.objective import Objective
from skysense_o.partial_objective import partial_terms
from skysense_o.presence import Presence
from skysense_o.prompt_objective import PromptObjective
from skysense_o.sample import IGNORE, Prediction, Reduce, Sample
from skysense_o.text_bank import TextBank
from skysense_o.training_words import TrainingWords
from skysense_o.vocabulary import Vocabulary


@META_ARCH_REGISTRY.register()
class SkySenseO(nn.Module):
    """Open-vocabulary segmentation: a tower encodes images and text, a decoder predicts one mask per phrase."""

    @configurable
    def __init__(
        self,
        *,
        tower: Tower,
        sem_seg_head: MaskDecoder,
        templates: Sequence[str] = ("{}",),
        objective: Objective | None = None,
        prompt_objective: PromptObjective | None = None,
        correction_objective: CorrectionObjective | None = None,
        region_projection: RegionProjection | None = None,
        text_noise: float = 0.0,
        phrase_chunk: int = 256,
        reference_compat: bool = False,
        gsd: float = 0.0,
        class_maps: bool = False,
        kinds: Kinds | None = None,
        presence: Presence | None = None,
        known_classes: Sequence[str] = (),
        blend: float = 0.0,
    ) -> None:
        """
        Args:
            tower: encodes images and text.
            sem_seg_head: the mask decoder.
            templates: P sentences with one "{}" each; the embedding of a phrase is the mean over the sentences.
            objective: losses for words.
            prompt_objective: losses for clicks and boxes.
            correction_objective: loss for corrections of their masks.
            region_projection: the published code's region map; None: regions are pooled from the dense features.
            text_noise: expected length of the noise added to unit text vectors in training.
            phrase_chunk: phrases decoded at a time in inference.
            reference_compat: see `ImageTransform.restore`.
            gsd: metres per pixel of the training images; 0: unknown. For information only.
            class_maps: clicks and boxes also use what the model knows of classes, see `PromptedImage.prompt`.
            kinds: which words are kinds of which others; None: not known.
            presence: makes the presence of a phrase from its scores; None: not calibrated.
            known_classes: classes of the training, with synonyms behind bars.
            blend: how much similar training words count in the vector of another word, see `TrainingWords.blend`.
        """
        super().__init__()
        self.tower, self.sem_seg_head = tower, sem_seg_head
        self.templates, self.text_bank = tuple(templates), TextBank()
        self.training_words = TrainingWords(tower, known_classes, self.text_bank, blend)
        self.objective, self.prompt_objective = objective, prompt_objective
        self.correction_objective = correction_objective
        self.region_projection, self.text_noise = region_projection, text_noise
        self.phrase_chunk, self.reference_compat, self.gsd = phrase_chunk, reference_compat, gsd
        self.class_maps, self.kinds, self.presence = class_maps, kinds or Kinds(), presence or Presence()
        # Runs the image half (tower and refinement) in another runtime, see inference/backend.py; None: torch runs it.
        self.exported: Callable[[Tensor], tuple[object, Tensor]] | None = None

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
            "correction_objective": CorrectionObjective.from_config(cfg),
            "region_projection": RegionProjection(tower.dim, upscale) if upscale and objective.needs_regions else None,
            "text_noise": cfg.MODEL.TEXT_NOISE,
            "phrase_chunk": cfg.MODEL.SEM_SEG_HEAD.PHRASE_CHUNK,
            "reference_compat": cfg.MODEL.REFERENCE_COMPAT,
            "gsd": cfg.MODEL.GSD,
            "class_maps": cfg.MODEL.SEM_SEG_HEAD.CLASS_MAPS,
            "kinds": Kinds(cfg.MODEL.KNOWN.KINDS),
            "presence": Presence(cfg.MODEL.KNOWN.PRESENCE),
            "known_classes": cfg.MODEL.KNOWN.CLASSES,
            "blend": cfg.MODEL.KNOWN.BLEND if cfg.MODEL.KNOWN.BLEND != -1 else 0.0,
        }

    @property
    def device(self) -> torch.device:
        return self.tower.pixel_mean.device

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[Prediction]:
        """Training: samples with labels -> name of a loss -> scalar. Inference: samples -> labels and scores."""
        if self.training:
            return self.losses(samples)
        return self.predict(samples, "labels")

    @property
    def takes_prompts(self) -> bool:
        """Whether clicks and boxes are supported (`predict_prompts`)."""
        return self.sem_seg_head.takes_prompts

    @property
    def presence_calibrated(self) -> bool:
        """Whether `presence` of a prediction is a probability that was fitted on validation images."""
        return bool(self.presence.factors)

    @property
    def stride(self) -> int:
        """Stride of the mask grid, in pixels of the prepared image."""
        return self.tower.stride // self.sem_seg_head.upscale

    @torch.no_grad()
    def predict_windows(self, windows: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Predict windows of one size.

        Args:
            windows: uint8 (B,3,H,W). Sides are multiples of the tower's divisor, or equal its fixed input size.
            vocabulary: C classes.

        Returns:
            (B,C,h,w) probabilities on the mask grid, on which windows are blended; h = H / `stride`.
        """
        return self.class_probabilities(self.embed_images(list(windows))[0], len(windows), vocabulary)

    def read_words(self, vocabulary: Vocabulary) -> None:
        """Encode the words of a vocabulary before they are needed."""
        with torch.no_grad():
            self._encode_words([vocabulary])

    def _encode_words(self, vocabularies: Sequence[Vocabulary]) -> tuple[Tensor, Tensor]:
        """`TextBank` for inference, with `TrainingWords.blend`."""
        text, valid = self.text_bank(self.tower, vocabularies, self.templates)
        return self.training_words.blend(text, vocabularies, self.templates), valid

    def embed_images(self, images: Sequence[Tensor]) -> tuple[object, Tensor, list[geometry.ImageTransform]]:
        """Encode and refine images once, for any number of queries.

        Args:
            images: uint8 (3,H,W) each.

        Returns:
            The input of `sem_seg_head.decode`; dense features (B,D,h,w); one transform per image.
        """
        if self.exported is not None:
            x, transforms = geometry.prepare(images, self.tower)
            return *self.exported(x), transforms
        features, transforms = self._encode_images(images)
        return self.sem_seg_head.refine(features), features.dense, transforms

    def _encode_images(self, images: Sequence[Tensor]) -> tuple[Features, list[geometry.ImageTransform]]:
        x, transforms = geometry.prepare(images, self.tower)
        return replace(self.tower.encode_image(x), image=x), transforms

    def class_probabilities(self, image_embedding: object, batch: int, vocabulary: Vocabulary) -> Tensor:
        """Class probabilities (B,C,h',w') on the masks' own grid, for the `batch` images of an image embedding."""
        text, valid = self._encode_words([vocabulary])
        queries = Queries(text.expand(batch, -1, -1, -1), valid.expand(batch, -1))
        logits, _, _ = self.sem_seg_head.decode(image_embedding, queries, self.phrase_chunk)
        phrase_to_class, num_classes = vocabulary.phrase_to_class, len(vocabulary)
        narrowed = (self.kinds.narrow(masks, vocabulary) for masks in logits)
        return torch.stack(
            [geometry.best_of_phrases(masks.float().sigmoid_(), phrase_to_class, num_classes) for masks in narrowed]
        )

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], reduce: Reduce) -> list[Prediction]:
        """Predict samples of any sizes and vocabularies. Samples of equal padded size form a batch."""
        transforms = [geometry.image_transform_for(tuple(sample["image"].shape[-2:]), self.tower) for sample in samples]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, transform in enumerate(transforms):
            groups.setdefault(transform.padded, []).append(index)
        predictions: dict[int, Prediction] = {}
        for indices in groups.values():
            predictions.update(zip(indices, self._predict_group([samples[i] for i in indices], reduce)))
        return [predictions[i] for i in range(len(samples))]

    def _predict_group(self, samples: Sequence[Sample], reduce: Reduce) -> list[Prediction]:
        image_embedding, _, transforms = self.embed_images([sample["image"] for sample in samples])
        sizes = [(s.get("height", f.size[0]), s.get("width", f.size[1])) for s, f in zip(samples, transforms)]
        return self.predict_text(image_embedding, transforms, [s["vocabulary"] for s in samples], sizes, reduce)

    @torch.no_grad()
    def predict_text(
        self,
        image_embedding: object,
        transforms: Sequence[geometry.ImageTransform],
        vocabularies: Sequence[Vocabulary],
        sizes: Sequence[tuple[int, int]],
        reduce: Reduce,
    ) -> list[Prediction]:
        """Predict masks for already refined images.

        Args:
            image_embedding: B images, from `sem_seg_head.refine`.
            transforms: one per image, from `geometry.prepare`.
            vocabularies: one per image.
            sizes: output size (H,W) per image.
            reduce: "labels" or "probabilities", see `Prediction`.
        """
        text, valid = self._encode_words(vocabularies)
        logits, head, _ = self.sem_seg_head.decode(image_embedding, Queries(text, valid), self.phrase_chunk)
        predictions = []
        for b, (vocabulary, transform, size) in enumerate(zip(vocabularies, transforms, sizes)):
            phrase_to_class, num_classes = vocabulary.phrase_to_class, len(vocabulary)
            masks, found = logits[b, : len(phrase_to_class)], None
            if head is not None:  # before narrowing: in a forest there are trees, even if "forest" is requested, too
                found = self.presence(head[b, : len(phrase_to_class)], masks, transform)
            masks = self.kinds.narrow(masks, vocabulary)
            prediction = transform.restore(masks, phrase_to_class, num_classes, size, reduce, self.reference_compat)
            if found is not None:
                prediction["presence"] = geometry.best_of_phrases(found, phrase_to_class, num_classes)
            predictions.append(prediction)
        return predictions

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch. Samples have `sem_seg` and one phrase per class."""
        features, transforms = self._encode_images([sample["image"] for sample in samples])
        image_embedding = self.sem_seg_head.refine(features)
        sem_seg = torch.stack([_padded_labels(s["sem_seg"], f).to(self.device) for s, f in zip(samples, transforms)])
        terms: dict[str, Tensor] = {}
        if self.objective.weights:
            text, valid = self.text_bank(self.tower, [s["vocabulary"] for s in samples], self.templates)
            text = self.blur(text)
            logits, presence, _ = self.sem_seg_head.decode(image_embedding, Queries(text, valid))
            batch = samples, sem_seg, logits, presence, text, valid
            if any("says" in sample for sample in samples):
                terms |= partial_terms(self.objective, *batch, features, self._encode_phrases)
            else:
                regions = partial(self._regions, features.dense, sem_seg, text.shape[1])
                terms |= self.objective(*batch, regions)
        if self.prompt_objective is not None:
            terms |= self.prompt_objective(partial(self.predict_prompts, image_embedding), samples, transforms, sem_seg)
        if self.correction_objective is not None:
            terms |= self.correction_objective(self, image_embedding, samples, transforms, sem_seg)
        return terms

    def predict_prompts(
        self, image_embedding: ImageEmbedding, points: Tensor, labels: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Predict masks for clicks and boxes, see `Queries` -> logits (B,K,h',w') and predicted IoU (B,K)."""
        text = points.new_zeros((len(points), 0, len(self.templates), self.tower.dim))
        queries = Queries(text, text[..., 0, 0].bool(), points, labels, boxes)
        logits, _, iou_pred = self.sem_seg_head.decode(image_embedding, queries)
        return logits, iou_pred

    def _encode_phrases(self, phrases: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Phrases of R images, without a template -> unit vectors (R,N,D), and bool (R,N), False for padding."""
        asked = [Vocabulary(tuple(p), tuple((w,) for w in p), (False,) * len(p)) for p in phrases]
        text, valid = self.text_bank(self.tower, asked, ("{}",))
        return text[:, :, 0], valid

    def _regions(self, dense: Tensor, sem_seg: Tensor, num_classes: int) -> Tensor:
        """Features of the regions of the classes (B,T,D), not normalised."""
        if self.region_projection is not None:
            return self.region_projection(dense.to(self.region_projection.mix.weight.dtype), sem_seg, num_classes)
        return losses.pool_regions(dense, sem_seg, num_classes)

    def blur(self, text: Tensor) -> Tensor:
        """Add Gaussian noise of expected length `text_noise` to unit vectors, and normalise them again."""
        if not self.text_noise:
            return text
        noise = torch.randn_like(text) * (self.text_noise / text.shape[-1] ** 0.5)
        return F.normalize(text + noise, dim=-1)


def _padded_labels(sem_seg: Tensor, transform: geometry.ImageTransform) -> Tensor:
    """Labels (H,W) -> labels of the padded image, where padding is IGNORE."""
    bottom, right = transform.padded[0] - transform.size[0], transform.padded[1] - transform.size[1]
    return F.pad(sem_seg, (0, right, 0, bottom), value=IGNORE)
