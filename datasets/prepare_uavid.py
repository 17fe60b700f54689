#!/usr/bin/env python
"""UAVid: frames and colour labels -> windows of 1280 x 1080.

python datasets/prepare_uavid.py --source uavid_v1.5_official_release

    uavid_{train,val}/seq1/Images/000000.png
    uavid_{train,val}/seq1/Labels/000000.png

Layout and colours are taken from the publishers' toolkit (uavid.nl); the windows are those of SegEarth-OV's
dataset_prepare.md. Frames of different sequences have the same names, so the stems of our files contain the sequence.
Labels of the test split are not public.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_color
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

COLORS = {
    (0, 0, 0): 0,  # background clutter
    (128, 0, 0): 1,  # building
    (128, 64, 128): 2,  # road
    (192, 0, 192): 3,  # static car
    (0, 128, 0): 4,  # tree
    (128, 128, 0): 5,  # low vegetation
    (64, 64, 0): 6,  # human
    (64, 0, 128): 7,  # moving car
}
RECIPE = Recipe(
    spec="uavid",
    image=r"(?:uavid_)?(?P<split>train|val)/(?P<sequence>seq\d+)/Images/(?P<frame>\d+)\.png",
    label=r"(?:uavid_)?(?P<split>train|val)/(?P<sequence>seq\d+)/Labels/(?P<frame>\d+)\.png",
    decode=by_color(COLORS),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
