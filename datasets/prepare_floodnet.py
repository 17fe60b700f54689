#!/usr/bin/env python
"""FloodNet (supervised, version 1): images and labels, unchanged.

python datasets/prepare_floodnet.py --source FloodNet-Supervised_v1.0

    {train,val,test}/{split}-org-img/6279.jpg
    {train,val,test}/{split}-label-img/6279_lab.png     0 background, 1 building flooded ... 9 grass

The layout and the label values are taken from the readme of github.com/BinaLab/FloodNet-Supervised_v1.0.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_value, unchanged
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

RECIPE = Recipe(
    spec="floodnet",
    image=r"(?P<split>train|val|test)/\w+-org-img/(?P<stem>[^/]+)\.jpg",
    label=r"(?P<split>train|val|test)/\w+-label-img/(?P<stem>[^/]+)_lab\.png",
    decode=by_value(unchanged(10)),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
