"""A region that was selected by clicks or a box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """The clicks and the box from which a region was made.

    Args:
        points: (x, y) pixels of the points.
        labels: 1 for a foreground point, 0 for a background point.
        box: half-open XYXY, or None.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None

    def __bool__(self) -> bool:
        return bool(self.points) or self.box is not None


@dataclass
class Region:
    """The region selected by the latest points or box.

    Args:
        mask: bool (H,W).
        iou_pred: predicted IoU of the mask; None with class maps (see `PromptedImage.prompt`), and for the box itself
            (weights without prompts).
        prompt: the clicks and the box from which the region was made.
    """

    mask: np.ndarray
    iou_pred: float | None
    prompt: Prompt
