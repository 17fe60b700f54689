#!/usr/bin/env python
"""ISPRS Potsdam: the 38 tiles and their colour labels -> windows of 512 x 512.

python datasets/prepare_potsdam.py --source Potsdam --bands rgb
python datasets/prepare_potsdam.py --source Potsdam --bands irrg    # the split val_irrg, which the benchmark MESS uses

    2_Ortho_RGB.zip    top_potsdam_2_10_RGB.tif       or 4_Ortho_RGBIR.zip   top_potsdam_2_10_RGBIR.tif
    3_Ortho_IRRG.zip   top_potsdam_2_10_IRRG.tif
    5_Labels_all_noBoundary.zip   top_potsdam_2_10_label_noBoundary.tif
    or 5_Labels_all.zip           top_potsdam_2_10_label.tif

The files can be zipped (also all in one Potsdam.zip) or unpacked. File names and colours are taken from torchgeo's
documentation of Potsdam2D. The split and the windows are those of mmsegmentation's converter: 24 tiles (3,456 windows)
for training, 14 tiles (2,016 windows) for validation.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_color
from skysense_o.data.prepare import Groups, Recipe
from skysense_o.data.prepare_command import main

# ISPRS's colours -> class ids. Class 0 is others (clutter); 255 is for the black borders of the noBoundary labels. The
# label of tile 4_12 has (252, 255, 0) in place of yellow; therefore `DECODE` has a tolerance.
COLORS = {
    (255, 0, 0): 0,  # clutter
    (255, 255, 255): 1,  # impervious surfaces: road
    (0, 0, 255): 2,  # building
    (0, 255, 255): 3,  # low vegetation: grass
    (0, 255, 0): 4,  # tree
    (255, 255, 0): 5,  # car
    (0, 0, 0): 255,
}

VAL = ["2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13"]
LABEL = (
    r"top_potsdam_(?P<row>\d+)_(?P<column>\d+)_label_noBoundary\.tif",
    r"top_potsdam_(?P<row>\d+)_(?P<column>\d+)_label\.tif",
)
RGB = (
    r"top_potsdam_(?P<row>\d+)_(?P<column>\d+)_RGB\.tif",
    r"top_potsdam_(?P<row>\d+)_(?P<column>\d+)_RGBIR\.tif",
)


def split(groups: Groups, index: int, count: int) -> str:
    return "val" if f"{groups['row']}_{groups['column']}" in VAL else "train"


def split_irrg(groups: Groups, index: int, count: int) -> str | None:
    return "val_irrg" if split(groups, index, count) == "val" else None


DECODE = by_color(COLORS, tolerance=8)
RECIPES = {
    "rgb": Recipe("potsdam", RGB, LABEL, DECODE, split),
    "irrg": Recipe("potsdam", r"top_potsdam_(?P<row>\d+)_(?P<column>\d+)_IRRG\.tif", LABEL, DECODE, split_irrg),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPES, "--bands"))
