#!/usr/bin/env python
"""DeepGlobe roads: images of 1024 x 1024 and their masks.

python datasets/prepare_deepglobe_road.py --source deepglobe/train
python datasets/prepare_deepglobe_road.py --source deepglobe/train --val-list val.txt

    train/100034_sat.jpg
    train/100034_mask.png     white for roads; grey values are thresholded at 128, as published

Only these 6,226 images have labels. By default, the 1,530 images with the highest numbers are the val split. Most
papers train on 4,696 images and evaluate on 1,530, but they choose different images; --val-list can name theirs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_threshold
from skysense_o.data.prepare import Groups, Recipe
from skysense_o.data.prepare_command import main


def split(groups: Groups, index: int, count: int) -> str:
    return "val" if index >= count - round(count * 1530 / 6226) else "train"


RECIPE = Recipe(
    spec="deepglobe_road",
    image=r"(?P<stem>\d+)_sat\.jpg",
    label=r"(?P<stem>\d+)_mask\.png",
    decode=by_threshold(128),
    split=split,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
