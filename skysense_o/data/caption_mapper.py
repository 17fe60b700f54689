"""Make pretraining samples: two views of an image, one caption, and a mask of hidden blocks."""

from __future__ import annotations

import re

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from PIL import Image

from skysense_o.data.augment import QuarterTurn, color_jitter
from skysense_o.data.captions import read_record_image
from skysense_o.data.catalog import spec_of
from skysense_o.data.classes import load_classes
from skysense_o.sample import Sample
from skysense_o.vocabulary import Vocabulary

CLASS_SENTENCES = ("{}", "an aerial photo of {}", "{} seen from above", "a satellite image of {}")
DIRECTION = re.compile(r"\b(left|right|top|bottom|upper|lower|north|south|east|west)\b", re.IGNORECASE)


class CaptionMapper:
    """Makes pretraining samples. All randomness comes from the global generators, which the loader seeds."""

    @configurable
    def __init__(
        self, *, crop: int, share: tuple[float, float], turn: bool, color: float, block: int, hidden: float
    ) -> None:
        """
        Args:
            crop: side of a view, in pixels.
            share: smallest and largest share of the image's area that a view shows.
            turn: rotate views by random multiples of 90 degrees.
            color: strength of the colour jitter; 0: none.
            block: side of the blocks that reconstruction hides, in pixels (SimMIM: 32).
            hidden: share of hidden blocks (SimMIM: 0.6).
        """
        self.crop, self.share, self.turn, self.color = crop, share, turn, color
        self.block, self.hidden = block, hidden

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {
            "crop": cfg.INPUT.CROP_SIZE,
            "share": tuple(cfg.PRETRAIN.CROP_SHARE),
            "turn": cfg.INPUT.TURN,
            "color": cfg.INPUT.COLOR_JITTER,
            "block": cfg.PRETRAIN.BLOCK,
            "hidden": cfg.PRETRAIN.HIDDEN,
        }

    def __call__(self, record: dict) -> Sample:
        """Make a sample from a record with captions or a class.

        Raises:
            BadData: the image cannot be read.
        """
        image = read_record_image(record)
        texts = record.get("captions") or _class_sentences(record)
        caption = texts[np.random.randint(len(texts))]
        blocks = -(-self.crop // self.block)  # number of blocks along a side
        hidden = np.zeros(blocks * blocks, bool)
        hidden[np.random.permutation(blocks * blocks)[: round(self.hidden * blocks * blocks)]] = True
        mask = np.kron(hidden.reshape(blocks, blocks), np.ones((self.block, self.block), bool))
        return {
            # An image is not flipped or rotated if its caption names a direction, so that the caption stays true.
            "image": self._view(image, rotate=not DIRECTION.search(caption)),
            "view": self._view(image, rotate=True),
            "hidden": torch.from_numpy(np.ascontiguousarray(mask[: self.crop, : self.crop])),
            "vocabulary": Vocabulary((caption,), ((caption,),), (False,)),
            "file_name": record["file_name"],
        }

    def _view(self, image: np.ndarray, rotate: bool) -> torch.Tensor:
        """A random part of the image, augmented -> uint8 (3,crop,crop)."""
        height, width = image.shape[:2]
        side = min(height, width, max(8, round((np.random.uniform(*self.share) * height * width) ** 0.5)))
        y, x = np.random.randint(height - side + 1), np.random.randint(width - side + 1)
        view = image[y : y + side, x : x + side]
        transforms: list[T.Transform] = [T.ResizeTransform(side, side, self.crop, self.crop, Image.BILINEAR)]
        if rotate and np.random.rand() < 0.5:
            transforms.append(T.HFlipTransform(self.crop))
        if rotate and self.turn:
            transforms.append(QuarterTurn(np.random.randint(4), self.crop, self.crop))
        if self.color:
            transforms.append(color_jitter(self.color))
        for transform in transforms:
            view = transform.apply_image(view)
        return torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))


def _class_sentences(record: dict) -> list[str]:
    """Captions for an image that only has a class: its name and synonyms in CLASS_SENTENCES."""
    table = load_classes(spec_of(record["dataset"]).class_table_name)
    words = (table.classes[record["label"]], *table.synonyms[record["label"]])
    return [sentence.format(word) for word in words for sentence in CLASS_SENTENCES]
