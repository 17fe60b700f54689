#!/usr/bin/env python
"""ISPRS Vaihingen: the 33 areas and their colour labels -> windows of 512 x 512.

python datasets/prepare_vaihingen.py --source Vaihingen

    ISPRS_semantic_labeling_Vaihingen.zip                                 top/top_mosaic_09cm_area1.tif
    ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip    top_mosaic_09cm_area1_noBoundary.tif
    else ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip      top_mosaic_09cm_area1.tif

The files can be zipped or unpacked. The first zip also contains labels with the same file names as the images
(gts_for_participants), so images are only taken from `top`. File names and colours are taken from torchgeo's
documentation of Vaihingen2D. The split and the windows are those of mmsegmentation's converter: 344 windows for
training and 398 for validation.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_color
from skysense_o.data.prepare import Groups, Recipe
from skysense_o.data.prepare_command import main

# ISPRS's colours -> class ids. Class 0 is others (clutter); 255 is for the black borders of the noBoundary labels.
COLORS = {
    (255, 0, 0): 0,  # clutter
    (255, 255, 255): 1,  # impervious surfaces: road
    (0, 0, 255): 2,  # building
    (0, 255, 255): 3,  # low vegetation: grass
    (0, 255, 0): 4,  # tree
    (255, 255, 0): 5,  # car
    (0, 0, 0): 255,
}

TRAIN = ["1", "3", "5", "7", "11", "13", "15", "17", "21", "23", "26", "28", "30", "32", "34", "37"]


def split(groups: Groups, index: int, count: int) -> str:
    return "train" if groups["area"].lower().removeprefix("area") in TRAIN else "val"


RECIPE = Recipe(
    spec="vaihingen",
    image=r"top/top_mosaic_09cm_(?P<area>area\d+)\.tif",
    label=(
        r"top_mosaic_09cm_(?P<area>area\d+)_noBoundary\.tif",
        r"(?:ground_truth_COMPLETE(?:\.zip)?|gts?)/top_mosaic_09cm_(?P<area>area\d+)\.tif",
    ),
    decode=by_color(COLORS),
    split=split,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
