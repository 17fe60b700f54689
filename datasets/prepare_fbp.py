#!/usr/bin/env python
"""Five-Billion-Pixels: scenes of 6800 x 7200 pixels with four bands (near infrared, red, green, blue) -> windows of
1024 x 1024 pixels in natural colour.

python datasets/prepare_fbp.py --source Five-Billion-Pixels

    Image__8bit_NirRGB/GF2_PMS1__*.tif                      four bands; the first (near infrared) is dropped
    Annotation__index/GF2_PMS1__*_24label.png               0 unlabelled, 1 industrial area ... 24 airport

The layout and the ids are taken from the publishers' page (x-ytong.github.io/project/Five-Billion-Pixels.html). We
chose the windows and the split: val is every fifth scene, or the scenes in --val-list.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from skysense_o.data.encode import by_value, decode_image, unchanged
from skysense_o.data.prepare import Groups, Recipe
from skysense_o.data.prepare_command import main


def natural_color(data: bytes, name: str) -> np.ndarray:
    array = np.asarray(decode_image(data, name))
    return array[..., 1:4] if array.shape[2] == 4 else array


def split(groups: Groups, index: int, count: int) -> str:
    return "val" if index % 5 == 4 else "train"


RECIPE = Recipe(
    spec="fbp",
    image=r"Image__8bit_NirRGB/(?P<stem>[^/]+)\.tiff?",
    label=r"Annotation__index/(?P<stem>[^/]+)_24label\.png",
    decode=by_value(unchanged(25)),
    split=split,
    read=natural_color,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
