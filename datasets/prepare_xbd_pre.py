#!/usr/bin/env python
"""xBD, only the images before the disaster: outlines of buildings in JSON -> label images.

python datasets/prepare_xbd_pre.py --source xview2

    {train,tier3,test,hold}/images/guatemala-volcano_00000000_pre_disaster.png
    {train,tier3,test,hold}/labels/guatemala-volcano_00000000_pre_disaster.json
        {"features": {"xy": [{"wkt": "POLYGON ((x y, ...), (hole), ...)", "properties": {...}}, ...]}}

The layout and the format of the labels are taken from the challenge's page (xview2.org/dataset) and its baseline
(github.com/DIUx-xView/xView2_baseline).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import re

import numpy as np
from PIL import Image, ImageDraw

from skysense_o.data.labels import BadData
from skysense_o.data.prepare import Recipe
from skysense_o.data.prepare_command import main


def draw(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
    """Draw the buildings of a JSON file -> uint8 (H,W), 1 in buildings, 0 outside and in their holes."""
    try:
        outlines = [feature["wkt"] for feature in json.loads(data)["features"]["xy"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{name} has not the format of xBD's labels ({error!r}): get it again") from error
    ids = Image.new("L", (size[1], size[0]), 0)
    pencil = ImageDraw.Draw(ids)
    for outline in outlines:
        for index, ring in enumerate(re.findall(r"\(([^()]+)\)", outline)):
            corners = [tuple(map(float, corner.split()[:2])) for corner in ring.split(",")]
            pencil.polygon(corners, fill=0 if index else 1)
    return np.asarray(ids)


RECIPE = Recipe(
    spec="xbd_pre",
    image=r"(?P<split>train|tier3|test|hold)/images/(?P<stem>[^/]+_pre_disaster)\.png",
    label=r"(?P<split>train|tier3|test|hold)/labels/(?P<stem>[^/]+_pre_disaster)\.json",
    decode=draw,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
