#!/usr/bin/env python
"""WHU aerial buildings: tiles of 512 x 512 and their labels, 255 for buildings.

python datasets/prepare_whu_aerial.py --source "3. The cropped image tiles and raster labels"

    {train,val,test}/image/1.tif
    {train,val,test}/label/1.tif     0, 255          (Kaggle's copy: Image, Mask)

The layout is taken from the publishers' page (gpcv.whu.edu.cn/data/building_dataset.html). The threshold of 128 is
taken from SegEarth-OV's dataset_prepare.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_threshold
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

RECIPE = Recipe(
    spec="whu_aerial",
    image=r"(?P<split>train|val|test)/image/(?P<stem>[^/]+)\.(?:tif|png)",
    label=r"(?P<split>train|val|test)/(?:label|mask)/(?P<stem>[^/]+)\.(?:tif|png)",
    decode=by_threshold(),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
