"""Augmentations of an image and its labels, as Detectron2 transforms.

All randomness comes from the global generators of NumPy and `random`, which the loader seeds for each sample.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from skysense_o.sample import IGNORE

CROP_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Random crop, scale, flip, rotation and colour of training samples.

    Attributes:
        side: side of the samples, in pixels.
        scale: smallest and largest scale; each scale is drawn log-uniformly.
        turn: rotate samples by random multiples of 90 degrees.
        color: strength of the colour jitter, see `color_jitter`.
        max_area: largest share of a crop that one class may fill; see `random_square`.
    """

    side: int
    scale: tuple[float, float] = (1.0, 1.0)
    turn: bool = False
    color: float = 0.0
    max_area: float = 1.0

    @classmethod
    def from_config(cls, cfg) -> Augmentation:
        i = cfg.INPUT
        return cls(i.CROP_SIZE, tuple(i.SCALE_RANGE), i.TURN, i.COLOR_JITTER, i.SINGLE_CATEGORY_MAX_AREA)

    def crop(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cut a random square out of image, uint8 (H,W,3), and labels, uint8 (H,W), and resize it to `side` pixels."""
        box = random_square(labels, self.side, self.scale, self.max_area)
        return crop_and_resize(image, labels, box, self.side)

    def transform(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply random colour jitter, flip and rotation to a square crop."""
        for transform in random_transforms(self.side, self.turn, self.color):
            image, labels = transform.apply_image(image), transform.apply_segmentation(labels)
        return image, labels


def random_square(
    labels: np.ndarray, side: int, scale: tuple[float, float], max_area: float
) -> tuple[int, int, int, int]:
    """Draw a square crop at a random scale.

    Args:
        labels: uint8 (H,W) class ids.
        side: side that the crop will be resized to, in pixels.
        scale: smallest and largest scale; drawn log-uniformly.
        max_area: largest share of the crop that one class may fill. If a class fills more, another crop is drawn, at
            most CROP_TRIES times.

    Returns:
        (x, y, width, height). If the image is too small for the drawn scale, the crop is the largest square that fits.
    """
    height, width = labels.shape
    crop = side / np.exp(np.random.uniform(*np.log(scale)))
    crop = max(min(8, height, width), min(round(crop), height, width))
    for _ in range(CROP_TRIES):
        y, x = np.random.randint(height - crop + 1), np.random.randint(width - crop + 1)
        if max_area >= 1:
            break
        part = labels[y : y + crop, x : x + crop]
        counts = cv2.calcHist([part], [0], None, [256], [0, 256]).ravel()[:IGNORE]  # six times as fast as np.bincount
        if counts.max() <= max_area * max(1, counts.sum()):
            break
    return x, y, crop, crop


def crop_and_resize(
    image: np.ndarray, labels: np.ndarray, box: tuple[int, int, int, int], side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Crop image and labels to the box and resize both to (side, side), the labels by nearest neighbour.

    Args:
        image: uint8 (H,W,3).
        labels: uint8 (H,W).
        box: (x, y, width, height) in pixels.
        side: in pixels.
    """
    x, y, width, height = box
    cut = T.CropTransform(x, y, width, height)
    resize = T.ResizeTransform(height, width, side, side, Image.BILINEAR)
    return resize.apply_image(cut.apply_image(image)), resize.apply_segmentation(cut.apply_segmentation(labels))


def random_transforms(side: int, turn: bool, color: float) -> list[T.Transform]:
    """Draw the transforms of a square crop: colour jitter, horizontal flip, rotation.

    Colour jitter comes first, because the array is not contiguous after a flip or rotation.

    Args:
        side: side of the crop, in pixels.
        turn: rotate by multiples of 90 degrees.
        color: strength, see `color_jitter`; 0: no colour jitter.
    """
    transforms: list[T.Transform] = [color_jitter(color)] if color else []
    if np.random.rand() < 0.5:
        transforms.append(T.HFlipTransform(side))
    if turn:
        transforms.append(QuarterTurn(np.random.randint(4), side, side))
    return transforms


class QuarterTurn(T.Transform):
    """Rotate an image of (height, width) pixels by `times` x 90 degrees, counter-clockwise.

    >>> QuarterTurn(1, height=4, width=6).apply_coords(np.array([[6.0, 0.0]]))
    array([[0., 0.]])
    """

    def __init__(self, times: int, height: int, width: int) -> None:
        super().__init__()
        self.times, self.height, self.width = times % 4, height, width

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.rot90(image, self.times)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return np.rot90(segmentation, self.times)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N,2) x, y in pixels -> x, y in the rotated image."""
        x, y = coords[:, 0], coords[:, 1]
        turned = ((x, y), (y, self.width - x), (self.width - x, self.height - y), (self.height - y, x))[self.times]
        return np.stack(turned, axis=1)


class ColorJitter(ColorAugSSDTransform):
    """The same as Detectron2's SSD colour jitter, with the same random draws, but three times as fast.

    Brightness and contrast are lookup tables. Saturation and hue share one conversion to HSV and back, so values are
    rounded once less.
    """

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """Jitter the colours of an image, uint8 (H,W,3) RGB; returns an image of the same type."""
        first = self._table(self._draw(-self.brightness_delta, self.brightness_delta, added=True))
        contrast_first = random.randrange(2)
        contrast = self._draw(self.contrast_low, self.contrast_high) if contrast_first else None
        saturation = self._draw(self.saturation_low, self.saturation_high)
        turn = random.randint(-self.hue_delta, self.hue_delta) if random.randrange(2) else 0
        if not contrast_first:
            contrast = self._draw(self.contrast_low, self.contrast_high)
        before, after = (self._table(contrast), None) if contrast_first else (None, self._table(contrast))
        table = first if before is None else before if first is None else before[first]
        img = img if table is None else cv2.LUT(img, table)
        if saturation is not None or turn:
            one = np.arange(256)
            tables = np.stack([(one + turn) % 180, one, one], axis=-1).astype(np.uint8)
            stronger = self._table(saturation)
            tables[:, 1] = one if stronger is None else stronger
            hsv = cv2.LUT(cv2.cvtColor(img, cv2.COLOR_RGB2HSV), tables[None])
            img = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return img if after is None else cv2.LUT(img, after)

    @staticmethod
    def _draw(low: float, high: float, added: bool = False) -> tuple[float, float] | None:
        """Draw (factor, offset); None, which means no change, with probability 1/2."""
        if not random.randrange(2):
            return None
        value = random.uniform(low, high)
        return (1.0, value) if added else (value, 0.0)

    @staticmethod
    def _table(drawn: tuple[float, float] | None) -> np.ndarray | None:
        """(factor, offset) -> lookup table, uint8 (256,)."""
        if drawn is None:
            return None
        return np.clip(np.arange(256, dtype=np.float32) * drawn[0] + drawn[1], 0, 255).astype(np.uint8)


def color_jitter(strength: float) -> ColorJitter:
    """SSD's colour jitter. At strength 1 it adds up to +-32 to brightness and +-18 to hue (of 180), and multiplies
    contrast and saturation by 0.5 to 1.5.
    """
    return ColorJitter(
        img_format="RGB",
        brightness_delta=round(32 * strength),
        contrast_low=1 - 0.5 * strength,
        contrast_high=1 + 0.5 * strength,
        saturation_low=1 - 0.5 * strength,
        saturation_high=1 + 0.5 * strength,
        hue_delta=round(18 * strength),
    )
