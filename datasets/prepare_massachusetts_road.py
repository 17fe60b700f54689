#!/usr/bin/env python
"""Massachusetts roads: images of 1500 x 1500 pixels and their road maps.

python datasets/prepare_massachusetts_road.py --source massachusetts

    {train,valid,test}/sat/10078660_15.tiff     {train,valid,test}/map/10078660_15.tif     0, 255
    Kaggle's copy: tiff/train/10078660_15.tiff  tiff/train_labels/10078660_15.tif (val, test alike)

The layout is taken from the publisher's page (cs.toronto.edu/~vmnih/data). Parts of an image that the aerial photos do
not cover are white and have no labels, so white areas of 2,500 or more connected pixels are ignored.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from skysense_o.data.encode import by_threshold
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

LEAST_WHITE = 2500


def ignore_white(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    white = (image == 255).all(axis=-1).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(white, connectivity=4)
    large = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] >= LEAST_WHITE)
    return np.where(np.isin(parts, large[large > 0]), 255, ids).astype(np.uint8)


RECIPE = Recipe(
    spec="massachusetts_road",
    image=(
        r"(?P<split>train|valid|val|test)/sat/(?P<stem>[^/]+)\.tiff?",
        r"tiff/(?P<split>train|val|test)/(?P<stem>[^/]+)\.tiff?",
    ),
    label=(
        r"(?P<split>train|valid|val|test)/map/(?P<stem>[^/]+)\.tiff?",
        r"tiff/(?P<split>train|val|test)_labels/(?P<stem>[^/]+)\.tiff?",
    ),
    decode=by_threshold(),
    mask=ignore_white,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
