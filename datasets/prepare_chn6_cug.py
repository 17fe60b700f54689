#!/usr/bin/env python
"""CHN6-CUG roads: tiles of 512 x 512 and their masks, 255 for roads.

python datasets/prepare_chn6_cug.py --source CHN6-CUG

    CHN6-CUG/{train,val}/images/bj100001_sat.jpg
    CHN6-CUG/{train,val}/gt/bj100001_mask.png     0, 255

The layout and the threshold are taken from SegEarth-OV's dataset_prepare.md and its converter.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_threshold
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

RECIPE = Recipe(
    spec="chn6_cug",
    image=r"(?P<split>train|val)/images/(?P<stem>[^/]+)_sat\.jpg",
    label=r"(?P<split>train|val)/gt/(?P<stem>[^/]+)_mask\.png",
    decode=by_threshold(),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
