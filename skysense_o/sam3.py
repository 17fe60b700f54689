"""SAM 3 with the methods of `SkySenseO`, so that `Predictor`, scenes, evaluation and the data engine can use it.

Shape letters: B images, T phrases, N image-phrase pairs, C classes, Q queries, K prompts, H W pixels, h w grid.

For each phrase SAM 3 predicts a semantic map, Q instances (masks with scores) and a presence score. This module turns
them into the probability of a class, with ideas of SegEarth-OV3 and ProC-SAM3: fuse the semantic map with the instances
(MODEL.SAM3.FUSE), multiply by the presence score (PRESENCE), drop phrases with a low presence score (WEAK_PHRASE), and
take the best phrase of each class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torchvision.ops import nms

from skysense_o import geometry
from skysense_o.modeling.sam3_tower import EXAMPLE_WORD, PhraseBank, Sam3Answer, Sam3Embedding, Sam3Tower, pad_phrases
from skysense_o.sample import Instances, Prediction, Reduce, Sample
from skysense_o.vocabulary import Vocabulary
from skysense_o.weight_paths import find_weights

FUSIONS = ("semantic", "instances", "max")
GATES = ("none", "window", "image")
SAME_INSTANCE = 0.5
"""If boxes from two phrases of a class have at least this IoU, they are the same instance."""


@META_ARCH_REGISTRY.register()
class Sam3(nn.Module):
    """SAM 3, not trained here. It takes words, example regions, clicks and boxes, and also predicts instances."""

    @configurable
    def __init__(
        self,
        *,
        tower: Sam3Tower,
        template: str = "{}",
        fuse: str = "max",
        presence: str = "window",
        weak_phrase: float = 0.0,
        instance_score: float = 0.5,
        instances: bool = True,
        phrase_chunk: int = 4,
        gsd: float = 0.0,
    ) -> None:
        """
        Args:
            tower: the model itself. template: a text with one "{}", where each phrase is inserted.
            fuse: how the probability of a phrase is computed: from the semantic map, from the best instance (mask times
                score), or per pixel as the larger of the two ("max").
            presence: factor of this probability: none, or the presence score of the phrase in the window or in the
                whole image. Without windows, window and image are the same.
            weak_phrase: phrases with a lower presence score count as absent; 0: off.
            instance_score: lowest score of an instance, multiplied by the presence score as in SAM 3.
            instances: whether boxes and polygons are SAM 3's instances; if False, they are regions of the label map.
            phrase_chunk: pairs of an image and a phrase at a time; affects memory, not results.
            gsd: metres per pixel of the training images, for a warning; 0: unknown.

        Raises:
            ValueError: `fuse` or `presence` is unknown, or a number is outside 0..1.
        """
        super().__init__()
        for key, value, known in (("FUSE", fuse, FUSIONS), ("PRESENCE", presence, GATES)):
            if value not in known:
                raise ValueError(f"unknown MODEL.SAM3.{key} {value!r}: choose one of {', '.join(known)}")
        for key, value in (("WEAK_PHRASE", weak_phrase), ("INSTANCE_SCORE", instance_score)):
            if not 0 <= value <= 1:
                raise ValueError(f"MODEL.SAM3.{key} {value} is out of range: 0 to 1")
        self.tower, self.templates, self.text_bank = tower, (template,), PhraseBank()
        self.fuse, self.presence, self.weak_phrase = fuse, presence, weak_phrase
        self.instance_score, self.offers_instances = instance_score, instances
        self.phrase_chunk, self.gsd = phrase_chunk, gsd
        side = tower.input_size
        self.stride = max(s for s in range(1, side + 1) if side % s == 0 and side // s >= tower.grid)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Load the model from the folder MODEL.WEIGHTS, whose files also give the sizes of its layers."""
        keys, templates = cfg.MODEL.SAM3, cfg.MODEL.TEMPLATES
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("Sam3 needs MODEL.WEIGHTS: hf://facebook/sam3, or a folder of it")
        if len(templates) != 1:
            raise ValueError(f"Sam3 takes one of MODEL.TEMPLATES, not {len(templates)}: SAM 3 reads short noun phrases")
        folder = Path(find_weights(cfg.MODEL.WEIGHTS))
        if not folder.is_dir():
            raise ValueError(f"MODEL.WEIGHTS {str(folder)!r} is a file: Sam3 needs the folder, or hf://facebook/sam3")
        return {
            "tower": Sam3Tower.from_pretrained(folder),
            "template": templates[0],
            "fuse": keys.FUSE,
            "presence": keys.PRESENCE,
            "weak_phrase": keys.WEAK_PHRASE,
            "instance_score": keys.INSTANCE_SCORE,
            "instances": keys.INSTANCES,
            "phrase_chunk": keys.PHRASE_CHUNK,
            "gsd": cfg.MODEL.GSD,
        }

    @property
    def device(self) -> torch.device:
        return self.tower.pixel_mean.device

    @property
    def settings(self) -> dict:
        """The settings, besides the weights, on which results depend; for records."""
        keys = ("fuse", "presence", "weak_phrase", "instance_score")
        return {f"sam3_{key}": getattr(self, key) for key in keys}

    @property
    def takes_prompts(self) -> bool:
        """Whether clicks and boxes are supported: they need the tracker, which a detector-only folder lacks."""
        return self.tower.tracker is not None

    def read_words(self, vocabulary: Vocabulary) -> None:
        """Encode the words of a vocabulary before they are needed."""
        self.text_bank(self.tower, [self.templates[0].format(p) for words in vocabulary.phrases for p in words])

    def forward(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Predict the label of each pixel and its score, for each sample."""
        return self.predict(samples, "labels")

    @torch.no_grad()
    def embed_images(self, images: Sequence[Tensor]) -> tuple[Sam3Embedding, Tensor, list[geometry.ImageTransform]]:
        """Encode uint8 (3,H,W) images: the vision features that all phrases share, their coarsest map (B,D,h,w), and
        one transform per image."""
        embedding = self.tower.embed(images)
        transforms = [geometry.image_transform_for(tuple(image.shape[-2:]), self.tower) for image in images]
        return embedding, embedding.maps[-2], transforms

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], reduce: Reduce) -> list[Prediction]:
        """Predict samples of any sizes and vocabularies; no result depends on what else is in the batch."""
        embedding, _, transforms = self.embed_images([sample["image"] for sample in samples])
        sizes = [(s.get("height", f.size[0]), s.get("width", f.size[1])) for s, f in zip(samples, transforms)]
        return self.predict_text(embedding, transforms, [s["vocabulary"] for s in samples], sizes, reduce)

    @torch.no_grad()
    def predict_text(
        self,
        image_embedding: Sam3Embedding,
        transforms: Sequence[geometry.ImageTransform],
        vocabularies: Sequence[Vocabulary],
        sizes: Sequence[tuple[int, int]],
        reduce: Reduce,
    ) -> list[Prediction]:
        """Predict from embedded images and words, as `SkySenseO.predict_text` does."""
        return [
            {**transform.restore_probabilities(grid, size, reduce), "presence": presence}
            for grid, presence, transform, size in zip(*self._classes(image_embedding, vocabularies), transforms, sizes)
        ]

    @torch.no_grad()
    def predict_windows(self, windows: Tensor, vocabulary: Vocabulary, presence: Tensor | None = None) -> Tensor:
        """Windows uint8 (B,3,H,W) of the model's input size -> (B,C,h,w) probabilities, h = H / `stride`.

        presence: (T,) presence scores in the whole image (`image_presence`), used instead of the scores per window.
        """
        embedding, _, _ = self.embed_images(list(windows))
        grid = self.class_probabilities(embedding, len(windows), vocabulary, presence)
        cells = self.tower.input_size // self.stride
        return F.interpolate(grid, size=(cells, cells), mode="bilinear", align_corners=False)

    @torch.no_grad()
    def class_probabilities(
        self, image_embedding: Sam3Embedding, batch: int, vocabulary: Vocabulary, presence: Tensor | None = None
    ) -> Tensor:
        """Class probabilities (B,C,h,w) on the masks' own grid, for the `batch` images of an image embedding."""
        return torch.stack(self._classes(image_embedding, [vocabulary] * batch, presence)[0])

    @torch.no_grad()
    def image_presence(self, overview: Callable[[], Tensor], vocabulary: Vocabulary) -> Tensor | None:
        """(T,) presence scores of the phrases in a whole image, uint8 (3,H,W); None if each window uses its own."""
        if self.presence != "image":
            return None
        embedding, _, _ = self.embed_images([overview()])
        return torch.cat([answer.presence for _, answer in self._answers(embedding, [vocabulary])])

    def _classes(
        self, embedding: Sam3Embedding, vocabularies: Sequence[Vocabulary], presence: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image the probabilities (C,h,w) and the presence scores (C,) of its classes."""
        side, device = self.tower.grid, self.device
        grids = [torch.zeros(len(v), side, side, device=device) for v in vocabularies]
        found = [torch.zeros(len(v), device=device) for v in vocabularies]
        for pairs, answer in self._answers(embedding, vocabularies):
            maps = self._phrase_maps(answer, pairs, presence)
            for (b, t), one, present in zip(pairs, maps, answer.presence):
                c = vocabularies[b].phrase_to_class[t]
                grids[b][c] = torch.maximum(grids[b][c], one)
                found[b][c] = torch.maximum(found[b][c], present)
        return grids, found

    def _phrase_maps(self, answer: Sam3Answer, pairs: Sequence[tuple[int, int]], presence: Tensor | None) -> Tensor:
        """(N,h,w) probabilities of phrases: semantic maps fused with instances, times the presence scores."""
        maps = answer.semantic
        if self.fuse != "semantic":
            best = (answer.masks.float().sigmoid_() * answer.scores[..., None, None]).amax(1)
            maps = best if self.fuse == "instances" else torch.maximum(maps, best)
        present = answer.presence if presence is None else presence[[t for _, t in pairs]]
        gate = torch.ones_like(present) if self.presence == "none" else present
        gate = torch.where(present < self.weak_phrase, 0.0, gate)
        return maps * gate[:, None, None]

    def _answers(
        self, embedding: Sam3Embedding, vocabularies: Sequence[Vocabulary]
    ) -> Iterator[tuple[list[tuple[int, int]], Sam3Answer]]:
        """SAM 3's outputs for each image and each of its phrases, `phrase_chunk` pairs (b, t) at a time."""
        flat = [[phrase for words in v.phrases for phrase in words] for v in vocabularies]
        words = sorted({p for phrases, v in zip(flat, vocabularies) for p in phrases if p not in v.examples})
        asked = self.text_bank(self.tower, [self.templates[0].format(w) for w in words] + [EXAMPLE_WORD])
        known, visual = dict(zip(words, asked)), asked[-1]
        pairs = [(b, t) for b, phrases in enumerate(flat) for t in range(len(phrases))]
        for some in (pairs[i : i + self.phrase_chunk] for i in range(0, len(pairs), self.phrase_chunk)):
            tokens = []
            for b, t in some:
                example = vocabularies[b].examples.get(flat[b][t])
                tokens.append(known[flat[b][t]] if example is None else _like(example, *visual))
            yield some, self.tower.answer(embedding.of([b for b, _ in some]), *pad_phrases(tokens))

    @torch.no_grad()
    def instances(
        self,
        image_embedding: Sam3Embedding,
        vocabularies: Sequence[Vocabulary],
        sizes: Sequence[tuple[int, int]],
        threshold: float | None = None,
        presence: Tensor | None = None,
    ) -> list[Instances]:
        """The instances of each foreground class, for each phrase as `Sam3Processor.post_process_instance_segmentation`
        computes them. An instance that two phrases of a class have found is kept only once.

        Args:
            sizes: (H,W) of the images, or any other size for masks and boxes.
            threshold: lowest score; None: the model's own. presence: see `predict_windows`.
        """
        least = self.instance_score if threshold is None else threshold
        found: list[dict[int, list]] = [{} for _ in vocabularies]
        for pairs, answer in self._answers(image_embedding, vocabularies):
            present = answer.presence if presence is None else presence[[t for _, t in pairs]]
            scores = answer.scores * present[:, None]
            for n, (b, t) in enumerate(pairs):
                c = vocabularies[b].phrase_to_class[t]
                if vocabularies[b].background[c] or present[n] < self.weak_phrase:
                    continue
                keep = scores[n] > least
                boxes = answer.boxes[n, keep] * answer.boxes.new_tensor(sizes[b][::-1]).repeat(2)
                if keep.any():  # masks one by one, because all masks in float would not fit into memory
                    masks = torch.stack([_full_size(mask, sizes[b]) > 0.5 for mask in answer.masks[n, keep]])
                    found[b].setdefault(c, []).append((scores[n, keep], boxes, masks))
        return [_joined(classes, size, self.device) for classes, size in zip(found, sizes)]

    @torch.no_grad()
    def predict_prompts(
        self, image_embedding: Sam3Embedding, points: Tensor, labels: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clicks and boxes (see `Queries`, in pixels of the square) -> logits (B,K,h,w) and predicted IoU (B,K)."""
        each = (self.tower.track(image_embedding.of([b]), *asked) for b, asked in enumerate(zip(points, labels, boxes)))
        logits, iou_pred = zip(*each)
        return torch.stack(logits), torch.stack(iou_pred)

    @torch.no_grad()
    def embed_regions(self, image_embedding: Sam3Embedding, boxes: Tensor) -> Tensor:
        """Encode boxes (K,4) of one image, as shares of its sides -> (K,D') tokens, with which SAM 3 finds similar
        regions in any image; see `Vocabulary.with_examples`."""
        tokens = self.tower.encode_boxes(image_embedding.of([0] * len(boxes)), boxes[:, None].to(self.device))
        return tokens.flatten(1)


def _like(example: Tensor, tokens: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """SAM 3's input for an example region: the tokens of its phrase for examples, then those of `embed_regions`."""
    region = example.to(tokens).view(-1, tokens.shape[-1])
    return torch.cat([tokens, region]), torch.cat([valid, valid.new_ones(len(region))])


def _full_size(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge a mask to the size of the image: logits (h,w) -> probabilities (H,W)."""
    return F.interpolate(mask[None, None].float().sigmoid(), size=size, mode="bilinear", align_corners=False)[0, 0]


def _joined(classes: dict[int, list], size: tuple[int, int], device: torch.device) -> Instances:
    """Join the instances found for each class into all instances of an image, and remove duplicates within a class."""
    labels, scores = [], [torch.zeros(0, device=device)]
    boxes, masks = [torch.zeros(0, 4, device=device)], [torch.zeros(0, *size, dtype=torch.bool, device=device)]
    for c, answers in sorted(classes.items()):
        score, box, mask = (torch.cat(parts) for parts in zip(*answers))
        if len(answers) > 1:
            kept = nms(box, score, SAME_INSTANCE)
            score, box, mask = score[kept], box[kept], mask[kept]
        labels += [c] * len(score)
        scores.append(score)
        boxes.append(box)
        masks.append(mask)
    return Instances(torch.tensor(labels, dtype=torch.int64), torch.cat(scores), torch.cat(boxes), torch.cat(masks))
