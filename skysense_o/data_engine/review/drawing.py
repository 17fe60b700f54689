"""Draws the image on the review page: outlines and numbers all regions, and highlights the current region."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from skysense_o.inference.drawing import REGION_COLOR

SHOWN_SIDE = 1000
"""Approximate longer side of the drawn image, in pixels; small tiles are enlarged so that they are easy to click."""
OPEN, DECIDED = (255, 255, 255), (90, 230, 110)
DIMMED = 0.72


def review_zoom(size: tuple[int, ...]) -> int:
    """The integer factor by which an image of size (H,W) is enlarged."""
    return max(1, round(SHOWN_SIDE / max(size[:2])))


def draw_regions(
    image: np.ndarray,
    labels: np.ndarray,
    current: int,
    decided: Collection[int],
    corner: tuple[int, int] | None = None,
) -> Image.Image:
    """Draw the regions of a tile, enlarged by `review_zoom`.

    Args:
        image: uint8 (H,W,3).
        labels: integers (H,W), the region of each pixel, 0 for none.
        current: the region to decide on; it is highlighted, and all other pixels are dimmed.
        decided: regions to outline in green.
        corner: x, y of the first corner of a box that is being drawn, in pixels of the tile.
    """
    zoom = review_zoom(labels.shape)
    enlarged = image.repeat(zoom, 0).repeat(zoom, 1)
    large = labels.repeat(zoom, 0).repeat(zoom, 1)
    here = large == current
    enlarged = np.where(here[..., None], enlarged, enlarged * DIMMED).astype(np.uint8)
    edge = _thicker(_edges(large), 2)
    enlarged[_thicker(edge, 3)] = (0, 0, 0)
    enlarged[edge] = OPEN
    enlarged[edge & np.isin(large, list(decided))] = DECIDED
    core = cv2.erode(here.astype(np.uint8), np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    enlarged[here & ~core.astype(bool)] = REGION_COLOR
    canvas = Image.fromarray(enlarged)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(SHOWN_SIDE // 40)
    for region in np.unique(labels):
        if region:
            color = REGION_COLOR if region == current else OPEN
            center = _thickest(labels == region, zoom)
            pen.text(center, str(region), fill=color, font=font, anchor="mm", stroke_width=3, stroke_fill="black")
    if corner is not None:
        x, y = ((value + 0.5) * zoom for value in corner)
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=REGION_COLOR, outline="black", width=2)
    return canvas


def _thicker(lines: np.ndarray, size: int) -> np.ndarray:
    return cv2.dilate(lines.astype(np.uint8), np.ones((size, size), np.uint8)).astype(bool)


def _edges(labels: np.ndarray) -> np.ndarray:
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge


def _thickest(mask: np.ndarray, zoom: int) -> tuple[float, float]:
    """The point x, y of the enlarged image, inside the region, that is furthest from its border."""
    x0, y0, width, height = cv2.boundingRect(mask.astype(np.uint8))
    inside = np.pad(mask[y0 : y0 + height, x0 : x0 + width], 1)
    depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return (x0 + x - 0.5) * zoom, (y0 + y - 0.5) * zoom
