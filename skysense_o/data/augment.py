"""Augmentations of a picture and its labels, as transforms of Detectron2.

All randomness comes from NumPy's global generator, which the loader seeds for each sample.
"""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T
from PIL import Image

from skysense_o.sample import IGNORE

CROP_TRIES = 10


def random_square(
    labels: np.ndarray, side: int, scale: tuple[float, float], max_area: float
) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a crop that will be resized to `side`, drawn at a random scale.

    Tried again while one class fills more than `max_area` of it. In a picture that is too small at the drawn scale the
    crop is the largest square.
    """
    height, width = labels.shape
    crop = side / np.exp(np.random.uniform(*np.log(scale)))
    crop = max(min(8, height, width), min(round(crop), height, width))
    for _ in range(CROP_TRIES):
        y, x = np.random.randint(height - crop + 1), np.random.randint(width - crop + 1)
        if max_area >= 1:
            break
        counts = np.bincount(labels[y : y + crop, x : x + crop].ravel(), minlength=IGNORE + 1)[:IGNORE]
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
    """Flip, quarter turn, colour, each drawn now."""
    transforms: list[T.Transform] = []
    if np.random.rand() < 0.5:
        transforms.append(T.HFlipTransform(side))
    if turn:
        transforms.append(QuarterTurn(np.random.randint(4)))
    if color:
        transforms.append(color_jitter(color))
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


def color_jitter(strength: float) -> T.Transform:
    """SSD's colours at a strength: 1 is brightness 32, contrast and saturation 0.5..1.5, hue 18."""
    from detectron2.projects.point_rend import ColorAugSSDTransform

    return ColorAugSSDTransform(
        img_format="RGB",
        brightness_delta=round(32 * strength),
        contrast_low=1 - 0.5 * strength,
        contrast_high=1 + 0.5 * strength,
        saturation_low=1 - 0.5 * strength,
        saturation_high=1 + 0.5 * strength,
        hue_delta=round(18 * strength),
    )
