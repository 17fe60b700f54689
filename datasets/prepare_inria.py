#!/usr/bin/env python
"""Inria aerial buildings: images of 5000 x 5000 -> windows of 1000 x 1000; 255 for buildings.

python datasets/prepare_inria.py --source AerialImageDataset

    AerialImageDataset/train/images/austin1.tif
    AerialImageDataset/train/gt/austin1.tif     0, 255

The layout is taken from the publishers' page (project.inria.fr/aerialimagelabeling). This page also advises to validate
on the first five images of each city; torchgeo uses the same split. SegEarth-OV evaluates on other images, which
--val-list can name. Labels of the test split are not public.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_threshold
from skysense_o.data.prepare import Groups, Recipe
from skysense_o.data.prepare_command import main


def split(groups: Groups, index: int, count: int) -> str:
    return "val" if int(groups["number"]) <= 5 else "train"


RECIPE = Recipe(
    spec="inria",
    image=r"train/images/(?P<city>[a-z-]+)(?P<number>\d+)\.tif",
    label=r"train/gt/(?P<city>[a-z-]+)(?P<number>\d+)\.tif",
    decode=by_threshold(),
    split=split,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
