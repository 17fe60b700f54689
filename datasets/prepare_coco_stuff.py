#!/usr/bin/env python
"""COCO-Stuff: COCO 2017's images and the pixel maps of things and stuff, 171 classes.

python datasets/prepare_coco_stuff.py --source train2017.zip val2017.zip stuffthingmaps_trainval2017.zip

    train2017/000000000009.jpg, val2017/...jpg
    stuffthingmaps_trainval2017: train2017/000000000009.png, val2017/...png     0 to 181; 255 unlabelled

The maps contain COCO's category id minus one. COCO never used 11 of the 182 ids, so there are 171 classes. Both facts
are taken from the readme of github.com/nightrome/cocostuff.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_value
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
USED = [value for value in range(182) if value not in UNUSED]
RECIPE = Recipe(
    spec="coco_stuff",
    image=r"(?P<split>train|val)2017/(?P<stem>\d{12})\.jpg",
    label=r"(?P<split>train|val)2017/(?P<stem>\d{12})\.png",
    decode=by_value({**{value: index for index, value in enumerate(USED)}, 255: 255}),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
