"""From a record to a Sample: read, augment, choose words."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from skysense_o.data.classes import load_classes, load_distractors
from skysense_o.data.prompt_sampler import PromptSampler
from skysense_o.data.text_sampler import TextSampler
from skysense_o.sample import IGNORE, Sample
from skysense_o.vocabulary import Vocabulary

CROP_TRIES = 10
KEPT_BYTES = 512 * 2**20
"""Decoded pictures that each loader process keeps: decoding a large JPEG costs more than all that follows."""

_kept: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}


def _read(image_path: str, label_path: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (H,W,3) RGB and (H,W); kept while there is room."""
    key = image_path, label_path
    if key not in _kept:
        with Image.open(image_path) as image:
            rgb = np.asarray(image.convert("RGB"))
        pair = rgb, read_labels(label_path, rgb.shape[:2])
        if sum(a.nbytes + b.nbytes for a, b in (*_kept.values(), pair)) > KEPT_BYTES:
            return pair
        _kept[key] = pair
    return _kept[key]


def read_labels(path: str, size: tuple[int, int]) -> np.ndarray:
    """A label picture as it is stored, (H,W).

    Raises:
        ValueError: a colour picture, or another size than its image.
    """
    with Image.open(path) as image:
        if image.mode not in ("L", "P", "I", "I;16"):
            raise ValueError(f"{path} is a {image.mode} picture: labels must be one channel of class ids")
        labels = np.asarray(image)
    if labels.shape != size:
        raise ValueError(f"{path} is {labels.shape}, its image {size} (height, width): they must be equal")
    return labels


class TrainingMapper:
    """Random scale, crop, flip, quarter turn and colour; words from a `TextSampler`.

    All randomness comes from the global generators, which the loader seeds for each sample.
    """

    @configurable
    def __init__(
        self,
        *,
        crop: int,
        scale: tuple[float, float],
        turn: bool,
        color: float,
        max_area: float,
        words: TextSampler,
        prompts: PromptSampler | None = None,
    ) -> None:
        self.crop, self.scale, self.turn, self.color, self.words = crop, scale, turn, color, words
        self.max_area, self.prompts = max_area, prompts

    @classmethod
    def from_config(cls, cfg) -> dict:
        pool = load_distractors(cfg.INPUT.DISTRACTOR_FILE) if cfg.INPUT.DISTRACTORS else ()
        return {
            "crop": cfg.INPUT.CROP_SIZE,
            "scale": tuple(cfg.INPUT.SCALE_RANGE),
            "turn": cfg.INPUT.TURN,
            "color": cfg.INPUT.COLOR_JITTER,
            "max_area": cfg.INPUT.SINGLE_CATEGORY_MAX_AREA,
            "words": TextSampler(cfg.INPUT.SYNONYMS, pool, cfg.INPUT.DISTRACTORS),
            "prompts": PromptSampler(cfg.INPUT.PROMPTS) if cfg.INPUT.PROMPTS else None,
        }

    def __call__(self, record: dict) -> Sample:
        image, labels = _read(record["file_name"], record["sem_seg_file_name"])
        table = load_classes(record["dataset"])
        _check_ids(labels, len(table), record["sem_seg_file_name"])
        image, labels = self._crop(image, labels)
        for transform in self._transforms():
            image, labels = transform.apply_image(image), transform.apply_segmentation(labels)
        sample: Sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "sem_seg": torch.from_numpy(np.ascontiguousarray(labels).astype(np.int64)),
            "vocabulary": self.words(table),
            "file_name": record["file_name"],
        }
        if self.prompts:
            sample["prompts"] = self.prompts(labels)
        return sample

    def _crop(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A square at a random scale, tried again while one class fills more than `max_area` of it."""
        height, width = labels.shape
        side = self.crop / np.exp(np.random.uniform(*np.log(self.scale)))
        side = max(8, min(round(side), height, width))
        for _ in range(CROP_TRIES):
            y, x = np.random.randint(height - side + 1), np.random.randint(width - side + 1)
            part = labels[y : y + side, x : x + side]
            counts = np.bincount(part[part != IGNORE], minlength=1)
            if counts.max() <= self.max_area * max(1, counts.sum()):
                break
        resize = T.ResizeTransform(side, side, self.crop, self.crop, Image.BILINEAR)
        return resize.apply_image(image[y : y + side, x : x + side]), resize.apply_segmentation(part)

    def _transforms(self) -> list[T.Transform]:
        transforms: list[T.Transform] = []
        if np.random.rand() < 0.5:
            transforms.append(T.HFlipTransform(self.crop))
        if self.turn:
            transforms.append(QuarterTurn(np.random.randint(4)))
        if self.color:
            transforms.append(color_jitter(self.color))
        return transforms


class QuarterTurn(T.Transform):
    """Turn by `times` x 90 degrees, counter-clockwise."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.rot90(image, self.times)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return np.rot90(segmentation, self.times)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError("QuarterTurn turns pictures and labels, no coordinates")


def color_jitter(strength: float) -> ColorAugSSDTransform:
    return ColorAugSSDTransform(
        img_format="RGB",
        brightness_delta=round(32 * strength),
        contrast_low=1 - 0.5 * strength,
        contrast_high=1 + 0.5 * strength,
        saturation_low=1 - 0.5 * strength,
        saturation_high=1 + 0.5 * strength,
        hue_delta=round(18 * strength),
    )


def _check_ids(labels: np.ndarray, names: int, path: str) -> None:
    wrong = sorted(set(np.unique(labels).tolist()) - set(range(names)) - {IGNORE})
    if wrong:
        raise ValueError(f"{path} holds ids {wrong}: permitted are 0 to {names - 1} and {IGNORE} (ignored)")


def evaluation_sample(record: dict, vocabulary: Vocabulary) -> Sample:
    """The whole picture, as it is, with its labels and the words that the evaluation asks for."""
    image, labels = _read(record["file_name"], record["sem_seg_file_name"])
    _check_ids(labels, len(vocabulary), record["sem_seg_file_name"])
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "sem_seg": torch.from_numpy(labels.astype(np.int64)),
        "vocabulary": vocabulary,
        "file_name": record["file_name"],
    }
