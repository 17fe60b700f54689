"""Clicks and boxes for training images; each prompt marks one connected component of a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from skysense_o.clicks import box_from_mask, components, middle
from skysense_o.sample import Prompts

LEAST_PIXELS = 64  # smaller components are treated as label errors
MOST_POINTS = 3
BOX_JITTER = 0.1  # standard deviation, relative to the box's sides (Kirillov et al. 2023)


@dataclass(frozen=True)
class PromptSampler:
    """Draws K prompts per image. Each prompt is a box, or one to three clicks, with probability 1/2 each.

    Half of the first clicks are in the middle of the component. Uses NumPy's global generator, which the loader seeds.
    """

    count: int

    def __call__(self, labels: np.ndarray) -> Prompts:
        """Class ids (H,W) -> K prompts. If no component is large enough, all masks are empty; the loss ignores them."""
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
    """Add noise to the corners of a half-open box in an image of `size` (H,W) -> half-open box."""
    outside = np.array([0, 0, 1, 1], np.float32)
    corners = np.array(box, np.float32) - outside
    sides = np.tile(corners[2:] - corners[:2] + 1, 2)
    moved = corners + np.clip(np.random.randn(4) * BOX_JITTER * sides, -20, 20)
    limits = np.array([size[1], size[0]] * 2, np.float32) - 1
    moved = np.clip(moved, 0, limits)
    return np.concatenate([np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])]) + outside
