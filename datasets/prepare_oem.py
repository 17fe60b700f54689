#!/usr/bin/env python
"""OpenEarthMap (without xBD): images and labels, unchanged, in the splits of the publishers' lists.

python datasets/prepare_oem.py --source OpenEarthMap_wo_xBD

    OpenEarthMap_wo_xBD/<region>/images/<region>_<n>.tif
    OpenEarthMap_wo_xBD/<region>/labels/<region>_<n>.tif     0 unlabelled, 1 bareland ... 8 building
    OpenEarthMap_wo_xBD/train.txt, val.txt                   one file name per line

The layout is taken from the readme of the download. train.txt and val.txt also name images of xBD, which are not in the
download and are left out. Labels of the test split are not public.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_value, unchanged
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

RECIPE = Recipe(
    spec="oem",
    image=r"images/(?P<stem>[^/]+_\d+)\.tif",
    label=r"labels/(?P<stem>[^/]+_\d+)\.tif",
    decode=by_value(unchanged(9)),
    lists=(("train", "train.txt"), ("val", "val.txt")),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
