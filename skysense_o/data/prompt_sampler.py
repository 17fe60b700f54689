"""Clicks and boxes for a training image, each meaning one connected part of a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from skysense_o.clicks import box_from_mask, components, middle
from skysense_o.sample import Prompts

LEAST_PIXELS = 64  # smaller parts are specks of the labelling
MOST_POINTS = 3
BOX_JITTER = 0.1  # of the box's sides, standard deviation (Kirillov et al. 2023)


@dataclass(frozen=True)
class PromptSampler:
    """K prompts an image, half of them boxes, half one to three clicks inside the part (the first in its middle).

    Uses NumPy's global generator, which the loader seeds for each sample.
    """

    count: int

    def __call__(self, labels: np.ndarray) -> Prompts:
        """(H,W) class ids -> prompts. An image without a part gets empty masks, from which nothing is learned."""
        parts = components(labels, LEAST_PIXELS)
        masks = np.zeros((self.count, *labels.shape), bool)
        points = np.zeros((self.count, MOST_POINTS, 2), np.float32)
        kinds = np.full((self.count, MOST_POINTS), -1, np.int64)
        boxes = np.full((self.count, 4), np.nan, np.float32)
        for k in range(self.count if parts else 0):
            masks[k] = parts[np.random.randint(len(parts))]
            if np.random.rand() < 0.5:
                boxes[k] = _jittered(box_from_mask(masks[k]), labels.shape)
                continue
            count = np.random.randint(1, MOST_POINTS + 1)
            y, x = np.nonzero(masks[k])
            chosen = np.random.randint(len(x), size=count)
            points[k, :count], kinds[k, :count] = np.stack([x[chosen], y[chosen]], 1), 1
            if np.random.rand() < 0.5:
                points[k, 0] = middle(masks[k])
        return {
            "masks": torch.from_numpy(masks),
            "points": torch.from_numpy(points),
            "labels": torch.from_numpy(kinds),
            "boxes": torch.from_numpy(boxes),
        }


def _jittered(box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Move the first and the last pixel of a half-open box within an image of `size` (H,W); half-open again."""
    outside = np.array([0, 0, 1, 1], np.float32)
    corners = np.array(box, np.float32) - outside
    sides = np.tile(corners[2:] - corners[:2] + 1, 2)
    moved = corners + np.clip(np.random.randn(4) * BOX_JITTER * sides, -20, 20)
    limits = np.array([size[1], size[0]] * 2, np.float32) - 1
    moved = np.clip(moved, 0, limits)
    return np.concatenate([np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])]) + outside
