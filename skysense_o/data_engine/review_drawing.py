"""The picture that a reviewer looks at: regions outlined and numbered, the current one highlighted."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from skysense_o.inference.drawing import REGION_COLOR

SHOWN_SIDE = 1000
"""Pixels; small tiles are shown larger, so that they can be clicked on."""
OPEN, DECIDED = (255, 255, 255), (90, 230, 110)
DIMMED = 0.72


def zoom_of(size: tuple[int, ...]) -> int:
    """How many times larger a picture of (H,W) is shown."""
    return max(1, SHOWN_SIDE // max(size[:2]))


def draw(
    picture: np.ndarray,
    labels: np.ndarray,
    current: int,
    decided: Collection[int],
    corner: tuple[int, int] | None = None,
) -> Image.Image:
    """
    Args:
        picture: uint8 (H,W,3). labels: (H,W), 0 the rest. current: the region to decide on. decided: those outlined in
            green. corner: x, y of the first corner of a box being drawn.
    """
    zoom = zoom_of(labels.shape)
    shown = picture.repeat(zoom, 0).repeat(zoom, 1)
    large = labels.repeat(zoom, 0).repeat(zoom, 1)
    here = large == current
    shown = np.where(here[..., None], shown, shown * DIMMED).astype(np.uint8)
    edge = _edges(large)
    shown[cv2.dilate(edge.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)] = (0, 0, 0)
    shown[edge] = OPEN
    shown[edge & np.isin(large, list(decided))] = DECIDED
    core = cv2.erode(here.astype(np.uint8), np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    shown[here & ~core.astype(bool)] = REGION_COLOR
    image = Image.fromarray(shown)
    pen = ImageDraw.Draw(image)
    for region in np.unique(labels):
        if region:
            _number(pen, int(region), labels == region, zoom, REGION_COLOR if region == current else OPEN)
    if corner is not None:
        x, y = ((value + 0.5) * zoom for value in corner)
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=REGION_COLOR, outline="black", width=2)
    return image


def _edges(labels: np.ndarray) -> np.ndarray:
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge


def _number(pen: ImageDraw.ImageDraw, region: int, mask: np.ndarray, zoom: int, color: tuple[int, int, int]) -> None:
    """Where the region is thickest, so that the number lies in it whatever its shape."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    place = (x + 0.5) * zoom, (y + 0.5) * zoom
    font = ImageFont.load_default(SHOWN_SIDE // 40)
    pen.text(place, str(region), fill=color, font=font, anchor="mm", stroke_width=3, stroke_fill="black")
