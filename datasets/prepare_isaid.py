#!/usr/bin/env python
"""iSAID: DOTA's images and iSAID's colour labels -> windows of 896 x 896 that overlap by 384.

python datasets/prepare_isaid.py --source iSAID

    iSAID/{train,val}/images/part*.zip                 images/P0000.png            (DOTA-v1.0)
    iSAID/{train,val}/Semantic_masks/images.zip        images/P0000_instance_color_RGB.png

The files can be zipped or unpacked. Layout, colours and windows are taken from mmsegmentation's documentation
(docs/en/user_guides/2_dataset_prepare.md) and converter. According to this documentation there are 33,978 windows for
training and 11,644 for validation. Images that are smaller than a window stay unchanged. Labels of the test split are
not public.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_color
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

COLORS = {
    (0, 0, 0): 0,  # others
    (0, 0, 63): 1,  # ship
    (0, 63, 63): 2,  # storage tank
    (0, 63, 0): 3,  # baseball diamond
    (0, 63, 127): 4,  # tennis court
    (0, 63, 191): 5,  # basketball court
    (0, 63, 255): 6,  # ground track field
    (0, 127, 63): 7,  # bridge
    (0, 127, 127): 8,  # large vehicle
    (0, 0, 127): 9,  # small vehicle
    (0, 0, 191): 10,  # helicopter
    (0, 0, 255): 11,  # swimming pool
    (0, 191, 127): 12,  # roundabout
    (0, 127, 191): 13,  # soccer ball field
    (0, 127, 255): 14,  # plane
    (0, 100, 155): 15,  # harbor
}
RECIPE = Recipe(
    spec="isaid",
    image=r"(?P<split>train|val)/(?:.*/)?(?P<stem>P\d+)\.png",
    label=r"(?P<split>train|val)/(?:.*/)?(?P<stem>P\d+)_instance_color_RGB\.png",
    decode=by_color(COLORS),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
