#!/usr/bin/env python
"""WBS-SI, water bodies in satellite images: images of any size and their masks, white for water.

python datasets/prepare_wbs_si.py --source WaterBodiesDatasetPreprocessed
python datasets/prepare_wbs_si.py --source WaterBodiesDatasetPreprocessed --val-list wbs-si_val.txt

    WaterBodiesDatasetPreprocessed/Images/*.jpg
    WaterBodiesDatasetPreprocessed/Masks/*.jpg (or .png)     grey, thresholded at 128

The layout and the threshold are taken from SegEarth-OV's configuration and converter. --val-list accepts SegEarth-OV's
list of val images. Without a list, every fifth image is val.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_threshold
from skysense_o.data.prepare import Groups, Recipe
from skysense_o.data.prepare_command import main


def split(groups: Groups, index: int, count: int) -> str:
    return "val" if index % 5 == 4 else "train"


RECIPE = Recipe(
    spec="wbs_si",
    image=r"Images/(?P<stem>[^/]+)\.(?:jpg|png)",
    label=r"Masks/(?P<stem>[^/]+)\.(?:jpg|png)",
    decode=by_threshold(128),
    split=split,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
