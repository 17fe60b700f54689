#!/usr/bin/env python
"""SpaceNet 3 roads: images of 1300 x 1300, centre lines in GeoJSON -> label images.

python datasets/prepare_spacenet_road.py --source SN3_roads        # unpacked: the publishers ship tar.gz

    AOI_2_Vegas/PS-RGB/SN3_roads_train_AOI_2_Vegas_PS-RGB_img1.tif                16 bits, georeferenced
    AOI_2_Vegas/geojson_roads/SN3_roads_train_AOI_2_Vegas_geojson_roads_img1.geojson    (or geojson_roads_speed)

The layout is taken from torchgeo's documentation of SpaceNet3. Each 16-bit image is stretched so that its 2nd
percentile becomes 0 and its 98th becomes 255. Roads are drawn 4 m wide, as in the challenge. Every tenth image of a
city is val.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import io
import json

import cv2
import numpy as np
from PIL import Image, ImageDraw

from skysense_o.data.labels import BadData
from skysense_o.data.prepare import Groups, Recipe
from skysense_o.data.prepare_command import main

SCALE, TIEPOINT = 33550, 33922  # GeoTIFF tags: the size of a pixel; the ground coordinates of one pixel
ROAD_METRES, METRES_A_DEGREE = 4.0, 111_320.0


def split(groups: Groups, index: int, count: int) -> str:
    return "val" if int(groups["number"]) % 10 == 0 else "train"


def read(data: bytes, name: str) -> np.ndarray:
    """Decode an image -> uint8 (H,W,3), and store its georeference, which `draw` needs."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # else OpenCV warns of each GeoTIFF tag
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.ndim != 3:
        raise BadData(f"{name} has not three bands: get it again")
    _georeference.clear()
    with Image.open(io.BytesIO(data)) as image:
        if SCALE not in image.tag_v2 or TIEPOINT not in image.tag_v2:
            raise BadData(f"{name} is not georeferenced, so roads cannot be drawn: get it again")
        _georeference[_number(name)] = (image.tag_v2[SCALE][:2], image.tag_v2[TIEPOINT])
    rgb = array[..., 2::-1]
    if rgb.dtype == np.uint8:
        return np.ascontiguousarray(rgb)
    low, high = np.percentile(rgb, (2, 98))
    return np.clip((rgb - low) * (255.0 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


_georeference: dict[str, tuple] = {}  # georeference of the current image


def _number(name: str) -> str:
    return name.rpartition("_img")[2].partition(".")[0]


def draw(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
    """Draw the roads of a GeoJSON file -> uint8 (H,W), 1 on roads."""
    (scale_x, scale_y), (column, row, _, x0, y0, *_) = _georeference[_number(name)]
    width = max(1, round(ROAD_METRES / (scale_y * METRES_A_DEGREE)))
    ids = Image.new("L", (size[1], size[0]), 0)
    pencil = ImageDraw.Draw(ids)
    for feature in json.loads(data)["features"]:
        geometry = feature["geometry"] or {"type": "None"}
        lines = {"LineString": lambda g: [g["coordinates"]], "MultiLineString": lambda g: g["coordinates"]}
        for line in lines.get(geometry["type"], lambda g: [])(geometry):
            # Coordinate 0 is the centre of the first pixel in Pillow, and its corner in GeoTIFF.
            corners = [(column + (p[0] - x0) / scale_x - 0.5, row + (y0 - p[1]) / scale_y - 0.5) for p in line]
            pencil.line(corners, fill=1, width=width, joint="curve")
    return np.asarray(ids)


RECIPE = Recipe(
    spec="spacenet_road",
    image=r"SN3_roads_train_(?P<city>AOI_\d+_[A-Za-z]+)_PS-RGB_img(?P<number>\d+)\.tif",
    label=(
        r"SN3_roads_train_(?P<city>AOI_\d+_[A-Za-z]+)_geojson_roads_img(?P<number>\d+)\.geojson",
        r"SN3_roads_train_(?P<city>AOI_\d+_[A-Za-z]+)_geojson_roads_speed_img(?P<number>\d+)\.geojson",
    ),
    decode=draw,
    split=split,
    read=read,
)

if __name__ == "__main__":
    sys.exit(main(__doc__, RECIPE))
