"""Augmentations of an image and its labels, as transforms of Detectron2.

All randomness comes from NumPy's global generator, which the loader seeds for each sample.
"""

from __future__ import annotations

import random

import cv2
import numpy as np
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from skysense_o.sample import IGNORE

CROP_TRIES = 10


def random_square(
    labels: np.ndarray, side: int, scale: tuple[float, float], max_area: float
) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a crop that will be resized to `side`, drawn at a random scale.

    Tried again while one class fills more than `max_area` of it. In an image that is too small at the drawn scale the
    crop is the largest square.
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
    """Cut the box out of both and bring it to (side, side); labels keep their ids (nearest)."""
    x, y, width, height = box
    cut = T.CropTransform(x, y, width, height)
    resize = T.ResizeTransform(height, width, side, side, Image.BILINEAR)
    return resize.apply_image(cut.apply_image(image)), resize.apply_segmentation(cut.apply_segmentation(labels))


def random_transforms(side: int, turn: bool, color: float) -> list[T.Transform]:
    """Colour, flip, quarter turn, each drawn now. Colour comes first, while the pixels still lie in a row."""
    transforms: list[T.Transform] = [color_jitter(color)] if color else []
    if np.random.rand() < 0.5:
        transforms.append(T.HFlipTransform(side))
    if turn:
        transforms.append(QuarterTurn(np.random.randint(4), side, side))
    return transforms


class QuarterTurn(T.Transform):
    """Turn by `times` x 90 degrees, counter-clockwise, what is `height` x `width` before."""

    def __init__(self, times: int, height: int, width: int) -> None:
        super().__init__()
        self.times, self.height, self.width = times % 4, height, width

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.rot90(image, self.times)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return np.rot90(segmentation, self.times)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N,2), x before y, in pixels of the image before -> after."""
        x, y = coords[:, 0], coords[:, 1]
        turned = ((x, y), (y, self.width - x), (self.width - x, self.height - y), (self.height - y, x))[self.times]
        return np.stack(turned, axis=1)


class ColorJitter(ColorAugSSDTransform):
    """Detectron2's SSD colours with the same draws, in a third of the time: tables for what is one value to one value,
    and one way to HSV and back for saturation and hue (so values are rounded once less).
    """

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """uint8 (H,W,3), RGB."""
        first = self._line(self._drawn(-self.brightness_delta, self.brightness_delta, added=True))
        contrast_first = random.randrange(2)
        contrast = self._drawn(self.contrast_low, self.contrast_high) if contrast_first else None
        saturation = self._drawn(self.saturation_low, self.saturation_high)
        turn = random.randint(-self.hue_delta, self.hue_delta) if random.randrange(2) else 0
        if not contrast_first:
            contrast = self._drawn(self.contrast_low, self.contrast_high)
        before, after = (self._line(contrast), None) if contrast_first else (None, self._line(contrast))
        table = first if before is None else before if first is None else before[first]
        img = img if table is None else cv2.LUT(img, table)
        if saturation is not None or turn:
            one = np.arange(256)
            tables = np.stack([(one + turn) % 180, one, one], axis=-1).astype(np.uint8)
            stronger = self._line(saturation)
            tables[:, 1] = one if stronger is None else stronger
            hsv = cv2.LUT(cv2.cvtColor(img, cv2.COLOR_RGB2HSV), tables[None])
            img = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return img if after is None else cv2.LUT(img, after)

    @staticmethod
    def _drawn(low: float, high: float, added: bool = False) -> tuple[float, float] | None:
        """(factor, added), or None where the coin says so."""
        if not random.randrange(2):
            return None
        value = random.uniform(low, high)
        return (1.0, value) if added else (value, 0.0)

    @staticmethod
    def _line(drawn: tuple[float, float] | None) -> np.ndarray | None:
        """value -> value, uint8 (256,)."""
        if drawn is None:
            return None
        return np.clip(np.arange(256, dtype=np.float32) * drawn[0] + drawn[1], 0, 255).astype(np.uint8)


def color_jitter(strength: float) -> ColorJitter:
    """SSD's colours at a strength: 1 is brightness 32, contrast and saturation 0.5..1.5, hue 18."""
    return ColorJitter(
        img_format="RGB",
        brightness_delta=round(32 * strength),
        contrast_low=1 - 0.5 * strength,
        contrast_high=1 + 0.5 * strength,
        saturation_low=1 - 0.5 * strength,
        saturation_high=1 + 0.5 * strength,
        hue_delta=round(18 * strength),
    )
