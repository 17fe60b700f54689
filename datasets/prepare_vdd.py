#!/usr/bin/env python
"""VDD (Varied Drone Dataset): drone images and their labels, unchanged.

python datasets/prepare_vdd.py --source VDD

    {train,val,test}/src/*.JPG
    {train,val,test}/gt/*.png        0 other, 1 wall, 2 road, 3 vegetation, 4 vehicle, 5 roof, 6 water

The layout and the label values are taken from the readme of github.com/RussRobin/VDD.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_value, unchanged
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

RECIPE = Recipe(
    spec="vdd",
    image=r"(?P<split>train|val|test)/src/(?P<stem>[^/]+)\.jpg",
    label=r"(?P<split>train|val|test)/gt/(?P<stem>[^/]+)\.png",
    decode=by_value(unchanged(7)),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
