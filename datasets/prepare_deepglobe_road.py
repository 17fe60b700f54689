#!/usr/bin/env python
"""DeepGlobe roads: images of 1024 x 1024 and their masks.

python datasets/prepare_deepglobe_road.py --source deepglobe/train
python datasets/prepare_deepglobe_road.py --source deepglobe/train --val-list val.txt

    train/100034_sat.jpg
    train/100034_mask.png     colours, white for roads; not pure: cut at 128, as its publishers say

Only these 6,226 images have labels. By default the last 1,530 by number are validation (4,696 and 1,530 are the
numbers in common use; the list of those images is not the same everywhere, so it can be given).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_threshold
from skysense_o.data.prepare import Groups, Recipe, main


def split(groups: Groups, place: int, count: int) -> str:
    return "val" if place >= count - round(count * 1530 / 6226) else "train"


RECIPE = Recipe(
    spec="deepglobe_road",
    image=r"(?P<stem>\d+)_sat\.jpg",
    label=r"(?P<stem>\d+)_mask\.png",
    decode=by_threshold(128),
    split=split,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
