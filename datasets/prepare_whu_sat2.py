#!/usr/bin/env python
"""WHU satellite II (East Asia) buildings: tiles of 512 x 512 and their labels, 255 for buildings.

python datasets/prepare_whu_sat2.py --source "Satellite dataset II (East Asia)"

    1. The cropped image data and raster labels/{train,test}/image/*.tif
    1. The cropped image data and raster labels/{train,test}/label/*.tif     0, 255

The layout is taken from the publishers' page (gpcv.whu.edu.cn/data/building_dataset.html).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_threshold
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

RECIPE = Recipe(
    spec="whu_sat2",
    image=r"(?P<split>train|test)/image/(?P<stem>[^/]+)\.tif",
    label=r"(?P<split>train|test)/label/(?P<stem>[^/]+)\.tif",
    decode=by_threshold(),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
