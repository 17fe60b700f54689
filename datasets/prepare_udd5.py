#!/usr/bin/env python
"""UDD5: drone images and their labels, unchanged.

python datasets/prepare_udd5.py --source UDD5

    {train,val}/src/DJI_0282.JPG
    {train,val}/gt/DJI_0282.png      0 vegetation, 1 building, 2 road, 3 vehicle, 4 other; or the colours of the readme

Layout, label values and colours are taken from the readme of github.com/MarcWong/UDD.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_value_or_color, unchanged
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

COLORS = {(107, 142, 35): 0, (102, 102, 156): 1, (128, 64, 128): 2, (0, 0, 142): 3, (0, 0, 0): 4}
RECIPE = Recipe(
    spec="udd5",
    image=r"(?P<split>train|val)/src/(?P<stem>[^/]+)\.jpg",
    label=r"(?P<split>train|val)/gt/(?P<stem>[^/]+)\.png",
    decode=by_value_or_color(unchanged(5), COLORS),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
