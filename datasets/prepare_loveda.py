#!/usr/bin/env python
"""LoveDA: rural and urban images in one folder per split; labels as published.

python datasets/prepare_loveda.py --source Train.zip Val.zip

    {Train,Val}/{Rural,Urban}/images_png/0.png
    {Train,Val}/{Rural,Urban}/masks_png/0.png     0 no data, 1 background, 2 building ... 7 agriculture

Labels keep their values. mmsegmentation's converter also keeps them, so folders that it made can be used too. Our
loader ignores the value 0 and subtracts one from the other values. The layout and the values are taken from torchgeo's
documentation of LoveDA. Labels of the test split are not public.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.data.encode import by_value, unchanged
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main

RECIPE = Recipe(
    spec="loveda",
    image=r"(?P<split>train|val)/(?:rural|urban)/images_png/(?P<stem>\d+)\.png",
    label=r"(?P<split>train|val)/(?:rural|urban)/masks_png/(?P<stem>\d+)\.png",
    decode=by_value(unchanged(8)),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
