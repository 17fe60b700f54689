"""Write images on which people inspect predictions by eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from skysense_o.inference.drawing import NONE_COLOR, Color, color_labels, with_legend
from skysense_o.sample import Sample

MAX_SIDE = 700


def side_by_side(
    sample: Sample, prediction: np.ndarray, colors: Sequence[Color], classes: Sequence[str], ignore: int
) -> Image.Image:
    """Draw input | truth | prediction with a legend; ignored pixels of the truth are black, "none" is grey.

    Args:
        sample: with `image` and `sem_seg`.
        prediction: (H,W) class indices; C for none.
        colors, classes: C each.
        ignore: label of ignored pixels.

    Returns:
        One image, downsampled so that no panel is longer than MAX_SIDE pixels.
    """
    image = sample["image"].numpy().transpose(1, 2, 0)
    truth = sample["sem_seg"].numpy()
    painted_truth = color_labels(truth, colors)
    painted_truth[truth == ignore] = 0
    step = max(1, -(-max(truth.shape) // MAX_SIDE))
    gap = np.full((-(-truth.shape[0] // step), 6, 3), 255, np.uint8)
    parts = [image, painted_truth, color_labels(prediction, [*colors, NONE_COLOR])]
    row = np.concatenate([parts[0][::step, ::step], gap, parts[1][::step, ::step], gap, parts[2][::step, ::step]], 1)
    shares = [(prediction == i).mean() for i in range(len(classes))]
    return with_legend(row, classes, colors, shares)
