"""SAM 3 (Carion et al. 2025), as transformers implements it, with the attributes of a tower.

Shape letters: B images, N pairs of an image and a phrase, L tokens of a phrase, K boxes, Q queries, D channels,
h w grid.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, Sam3ImageProcessor, Sam3Model, Sam3TrackerModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from skysense_o.modeling.tower import Features, Tower

PHRASE_TOKENS = 32
"""Tokens of a phrase, padding included, as `Sam3Processor` pads; longer phrases are cut."""
EXAMPLE_WORD = "visual"
"""The phrase that SAM 3 gets where only boxes define the object."""

TRACKER_NAMES = {r"^tracker_model\.": ""}
"""Pattern -> replacement: how the tracker's parameters are named in a folder that holds the whole of SAM 3."""


@dataclass
class Sam3Embedding:
    """B images that the vision encoder has encoded once, for any phrases, boxes and clicks."""

    maps: tuple[Tensor, ...]  # (B,D,h,w) each, finest first
    positions: tuple[Tensor, ...]  # position encodings of the same sizes
    hidden: Tensor  # (B,hw,C), before the detector's neck, because the tracker has its own neck

    def of(self, index: Sequence[int]) -> Sam3Embedding:
        """The embedding of N pairs, whose images are `index`; nothing is copied if all pairs have the same image."""
        if len(set(index)) == 1:
            pick = lambda x: x[index[0] : index[0] + 1].expand(len(index), *x.shape[1:])  # noqa: E731
        else:
            pick = lambda x: x[list(index)]  # noqa: E731
        return Sam3Embedding(tuple(map(pick, self.maps)), tuple(map(pick, self.positions)), pick(self.hidden))

    # The names under which `Sam3Model` reads the fields above.
    @property
    def fpn_hidden_states(self) -> tuple[Tensor, ...]:
        return self.maps

    @property
    def fpn_position_encoding(self) -> tuple[Tensor, ...]:
        return self.positions

    hidden_states = attentions = None


@dataclass
class Sam3Answer:
    """SAM 3's outputs for N pairs of an image and a phrase, on the grid of its masks."""

    semantic: Tensor  # (N,h,w) probabilities
    masks: Tensor  # (N,Q,h,w) logits
    scores: Tensor  # (N,Q) probability that a query is an instance of the phrase, if the phrase is present at all
    boxes: Tensor  # (N,Q,4) x0,y0,x1,y1 as shares of the sides
    presence: Tensor  # (N,) probability that the phrase is in the image


class Sam3Tower(Tower):
    """SAM 3's detector, and its tracker (clicks and boxes) where there is one.

    Images are squeezed to a square. SAM 3 has no vectors of images or regions in the text space.
    """

    divisor = 1
    pyramid_channels = ()

    def __init__(
        self, detector: Sam3Model, image_processor: Sam3ImageProcessor, tokenizer, tracker: Sam3TrackerModel | None
    ) -> None:
        """tokenizer: CLIP's tokenizer. tracker: it shares the detector's backbone from now on."""
        super().__init__(
            *([255 * v for v in values] for values in (image_processor.image_mean, image_processor.image_std))
        )
        self.detector, self.tracker = detector, tracker
        self.image_processor, self.tokenizer = image_processor, tokenizer
        backbone = detector.config.vision_config.backbone_config
        self.input_size, self.stride = image_processor.size["height"], backbone.patch_size
        if self.input_size != backbone.image_size:
            raise ValueError(
                f"the processor makes images of {self.input_size} pixels and the model takes {backbone.image_size}:"
                " take both from one folder"
            )
        self.dim = detector.config.text_config.projection_dim
        if tracker is not None:
            tracker.vision_encoder.backbone = detector.vision_encoder.backbone

    @classmethod
    def from_pretrained(cls, folder: Path) -> Sam3Tower:
        """Load a folder that `save_pretrained` wrote, or a snapshot of facebook/sam3.

        There is a tracker if the folder holds the whole of SAM 3 (`model_type` sam3_video).

        Raises:
            ValueError: the folder holds another model, or lacks the tokenizer, the processor or parameters.
        """
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind not in ("sam3", "sam3_video"):
            raise ValueError(f"{folder} holds a {kind!r}, not SAM 3 (sam3, sam3_video): give another folder")
        try:
            image_processor = Sam3ImageProcessor.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{folder} lacks what Sam3Processor.save_pretrained writes ({first_line}): copy these files too"
            ) from error
        tracker = _loaded(Sam3TrackerModel, folder, TRACKER_NAMES) if kind == "sam3_video" else None
        return cls(_loaded(Sam3Model, folder), image_processor, tokenizer, tracker)

    @property
    def grid(self) -> int:
        """Cells along a side of the masks."""
        return self.detector.config.vision_config.backbone_feature_sizes[0][0]

    def embed(self, images: Sequence[Tensor]) -> Sam3Embedding:
        """uint8 (3,H,W) images of any sizes, as `Sam3Processor` prepares them."""
        pixels = self.image_processor(list(images), return_tensors="pt", device=self.pixel_mean.device).pixel_values
        seen = self.detector.get_vision_features(pixels)
        return Sam3Embedding(seen.fpn_hidden_states, seen.fpn_position_encoding, seen.last_hidden_state)

    def encode_phrases(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode phrases -> tokens (N,L,D), and bool (N,L), False for padding. Not cached, see `PhraseBank`."""
        ids, valid = self._tokenized(phrases)
        return self.detector.get_text_features(input_ids=ids, attention_mask=valid).pooler_output, valid.bool()

    def encode_boxes(self, embedding: Sam3Embedding, boxes: Tensor) -> Tensor:
        """Encode boxes as examples: (B,K,4), x0,y0,x1,y1 as shares of the sides -> tokens (B,K+1,D)."""
        centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        every = torch.ones(boxes.shape[:2], dtype=torch.long, device=boxes.device)
        return self.detector.geometry_encoder(
            box_embeddings=torch.cat([centre, size], dim=-1),
            box_mask=every.bool(),
            box_labels=every,
            img_feats=embedding.maps[:-1],
            img_pos_embeds=embedding.positions[:-1],
        ).last_hidden_state

    def answer(self, embedding: Sam3Embedding, tokens: Tensor, valid: Tensor) -> Sam3Answer:
        """Run the detector on N pairs. embedding: see `Sam3Embedding.of`. tokens (N,L,D), valid (N,L): the phrases."""
        out = self.detector(
            vision_embeds=embedding,
            text_embeds=BaseModelOutputWithPooling(pooler_output=tokens),
            attention_mask=valid,
        )
        return Sam3Answer(
            out.semantic_seg[:, 0].float().sigmoid_(),
            out.pred_masks,
            out.pred_logits.float().sigmoid(),
            out.pred_boxes.float(),
            out.presence_logits[:, 0].float().sigmoid(),
        )

    def track(self, embedding: Sam3Embedding, points: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict masks for clicks and boxes with the tracker, each query by itself.

        Args:
            embedding: of one image. points (K,N,2) x,y and boxes (K,4) in pixels of the square; labels (K,N): 1 inside,
                0 outside, -1 none; NaN: no box.

        Returns:
            logits (K,h,w) of the mask with the best predicted IoU, and that IoU (K).
        """
        maps = self._tracker_maps(embedding)
        masks, quality = [], []
        for xy, kinds, box in zip(points, labels, boxes):
            some = kinds >= 0
            given = {"image_embeddings": maps}
            if some.any():
                given |= {"input_points": xy[some][None, None], "input_labels": kinds[some][None, None]}
            if not box.isnan().any():
                given["input_boxes"] = box[None, None]
            # As in SAM 2: one click is ambiguous, so the best of three masks is taken; other prompts give one mask.
            out = self.tracker(**given, multimask_output=int(some.sum()) == 1 and "input_boxes" not in given)
            best = int(out.iou_scores[0, 0].argmax())
            masks.append(out.pred_masks[0, 0, best])
            quality.append(out.iou_scores[0, 0, best])
        return torch.stack(masks), torch.stack(quality)

    def _tracker_maps(self, embedding: Sam3Embedding) -> list[Tensor]:
        """The result of `Sam3TrackerModel.get_image_embeddings`, from tokens that the backbone has already computed."""
        side, decoder = self.input_size // self.stride, self.tracker.mask_decoder
        spatial = embedding.hidden.transpose(1, 2).unflatten(2, (side, side))
        maps = list(self.tracker.vision_encoder.neck(spatial)[0])
        maps[0], maps[1] = decoder.conv_s0(maps[0]), decoder.conv_s1(maps[1])
        maps[-1] = maps[-1] + self.tracker.no_memory_embedding.view(1, -1, 1, 1)
        return maps[: len(self.tracker.backbone_feature_sizes)]

    def _tokenized(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        limit = {"padding": "max_length", "max_length": PHRASE_TOKENS, "truncation": True}
        out = self.tokenizer(list(phrases), return_tensors="pt", **limit)
        return out["input_ids"].to(self.pixel_mean.device), out["attention_mask"].to(self.pixel_mean.device)

    def encode_image(self, x: Tensor) -> Features:
        raise ValueError(
            "SAM 3 has no vector of an image or a region in the space of the words: use other weights here"
        )

    def encode_text(self, strings: Sequence[str]) -> Tensor:
        """(N,D) unit vectors of the text encoder, to compare words with words; they are not comparable with images."""
        ids, valid = self._tokenized(strings)
        return F.normalize(self.detector.text_encoder(input_ids=ids, attention_mask=valid).text_embeds, dim=-1)

    def text_parameters(self) -> Iterable[nn.Parameter]:
        yield from self.detector.text_encoder.parameters()
        yield from self.detector.text_projection.parameters()

    def layers(self) -> list[list[nn.Module]]:
        backbone = self.detector.vision_encoder.backbone
        return [[backbone.embeddings, backbone.layer_norm], *([layer] for layer in backbone.layers)]


class PhraseBank:
    """Cache of the tokens of phrases; each phrase is encoded once until the weights of the text encoder change."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[Tensor, Tensor]] = {}
        self._key: tuple | None = None
        self._lock = Lock()  # windows that run in parallel need the same words

    def weights_changed(self) -> None:
        """Drop the cache if the text encoder has other weights now."""
        self._key = None

    @torch.no_grad()
    def __call__(self, tower: Sam3Tower, phrases: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """For each phrase its tokens (L,D), and bool (L), False for padding."""
        with self._lock:
            key = tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in tower.text_parameters())
            if key != self._key:
                self._tokens, self._key = {}, key
            missing = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._tokens]
            for some in (missing[i : i + 64] for i in range(0, len(missing), 64)):
                self._tokens.update(zip(some, zip(*tower.encode_phrases(some))))
            return [self._tokens[phrase] for phrase in phrases]


def pad_phrases(tokens: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """N phrases of different lengths -> (N,L,D) and (N,L)."""
    pad = nn.utils.rnn.pad_sequence
    return pad([t for t, _ in tokens], batch_first=True), pad([v for _, v in tokens], batch_first=True)


def _loaded(kind: type, folder: Path, renamed: dict[str, str] | None = None) -> nn.Module:
    """A model of transformers in eval mode, float32. renamed: pattern -> replacement, for the names in the folder.

    Raises:
        ValueError: the files cannot be read, or lack parameters of the model.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers warns about the folder's other models
    logging.disable_progress_bar()
    try:
        model, found = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, key_mapping=renamed
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: {str(error).strip().splitlines()[0]}: is the folder complete?") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(f"{folder} lacks {len(missing)} parameters of {kind.__name__}, such as {missing[:3]}")
    return model.eval()
