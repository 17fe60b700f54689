"""Scene mosaics: parts of images with different scene classes in one image, so that each scene class has a mask.

The method follows Mosaic (Bochkovskiy et al. 2020) and ClassMix (Olsson et al. 2021).
"""

from __future__ import annotations

import cv2
import numpy as np


def ragged_cells(side: int, count: int, wobble: float = 0.08) -> np.ndarray:
    """Divide a square into `count` Voronoi cells with irregular borders -> uint8 (side,side), 0..count-1.

    Uses NumPy's global generator. `wobble` is the amplitude of the borders' irregularity, as a fraction of the side.
    """
    if count == 1:
        return np.zeros((side, side), np.uint8)
    cells = np.random.permutation(9)[:count]
    seeds = (np.stack([cells // 3, cells % 3], axis=1) + np.random.uniform(0.1, 0.9, (count, 2))) / 3
    stretch = np.random.uniform(0.6, 1.7)  # so that some cells are long
    y, x = (_wobbling(side, wobble) for _ in range(2))
    x, y = x * stretch, y.T / stretch
    nearest, labels = None, np.zeros((side, side), np.uint8)
    for cell, (down, right) in enumerate(seeds.astype(np.float32)):
        distance = (x - right * stretch) ** 2 + (y - down / stretch) ** 2
        if nearest is None:
            nearest = distance
            continue
        nearer = distance < nearest
        labels[nearer] = cell
        nearest = np.minimum(nearest, distance)
    return labels


def _wobbling(side: int, wobble: float) -> np.ndarray:
    """Coordinates from left to right in 0..1, float32 (side,side), shifted by smooth noise."""
    places = np.broadcast_to((np.arange(side, dtype=np.float32) + 0.5) / side, (side, side)).copy()
    for cells, share in ((5, 0.5), (9, 0.25), (17, 0.12)):
        noise = np.random.randn(cells, cells).astype(np.float32) * (share * wobble)
        places += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return places


def random_part(image: np.ndarray, side: int, least: float) -> np.ndarray:
    """A random square of the image, resized to `side`; its side is at least `least` times the image's shorter side."""
    shorter = min(image.shape[:2])
    length = max(8, round(shorter * np.random.uniform(least, 1.0)))
    y, x = (np.random.randint(n - length + 1) for n in image.shape[:2])
    part = image[y : y + length, x : x + length]
    return cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA if length > side else cv2.INTER_LINEAR)
