"""Draw label maps: overlays, legends, highlighted regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from skysense_o.inference.colors import NONE_COLOR, Color, colors_for

REGION_COLOR: Color = (255, 210, 0)
"""Color of a single highlighted region."""
MAX_IN_LEGEND = 30


def color_labels(labels: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Paint a label map.

    Args:
        labels: ids (H,W).
        colors: RGB per id; ids without a color become black.

    Returns:
        uint8 (H,W,3).

    >>> color_labels(np.array([[0, 1]]), [(9, 9, 9), (255, 0, 0)]).tolist()
    [[[9, 9, 9], [255, 0, 0]]]
    """
    table = np.zeros((max(len(colors), int(labels.max(initial=0)) + 1), 3), np.uint8)
    table[: len(colors)] = colors
    return table[labels]


def overlay(image: np.ndarray, labels: np.ndarray, colors: Sequence[Color], opacity: float = 0.5) -> np.ndarray:
    """Blend a label map with its image, and draw the borders between labels in full color.

    Args:
        image: uint8 (H,W,3), RGB.
        labels: ids (H,W).
        colors: RGB per id.
        opacity: opacity of the labels, 0..1.

    Returns:
        uint8 (H,W,3).

    >>> image, labels = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.uint8)
    >>> overlay(image, labels, [(0, 0, 0), (200, 100, 0)])[0, 0].tolist()
    [100, 50, 0]
    """
    painted = color_labels(labels, colors)
    mixed = (image * (1 - opacity) + painted * opacity).astype(np.uint8)
    border = np.zeros(labels.shape, bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    mixed[border] = painted[border]
    return mixed


def highlight(image: np.ndarray, labels: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Draw regions over an image, each in a color of its own.

    Args:
        image: uint8 (H,W,3), RGB.
        labels: region per pixel (H,W), from 1; pixels with 0 stay as they are.
        opacity: opacity of the regions, 0..1.

    Returns:
        uint8 (H,W,3).
    """
    count = int(labels.max(initial=0))
    colors = [REGION_COLOR] if count == 1 else colors_for([""] * count)
    return np.where((labels > 0)[..., None], overlay(image, labels, [NONE_COLOR, *colors], opacity), image)


def with_legend(
    image: np.ndarray, classes: Sequence[str], colors: Sequence[Color], shares: Sequence[float]
) -> Image.Image:
    """Add a legend below an image: color, name and share of each class. It covers no pixel of the image.

    The legend is not taller than the image: where its rows do not fit, it gets more columns and becomes wider than the
    image. Of more than MAX_IN_LEGEND classes, only the largest are listed, and the last entry shows how many are left
    out.

    Args:
        image: uint8 (H,W,3), RGB.
        classes, colors, shares: one entry per class; shares are 0..1.
    """
    if len(classes) > MAX_IN_LEGEND:
        order = sorted(range(len(classes)), key=lambda i: -shares[i])[: MAX_IN_LEGEND - 1]
        rest = 1 - sum(shares[i] for i in order)
        title = f"{len(classes) - len(order)} more"
        classes, colors = [*(classes[i] for i in order), title], [*(colors[i] for i in order), (255, 255, 255)]
        shares = [*(shares[i] for i in order), rest]
    height, width = image.shape[:2]
    size = int(np.clip(max(width, 320) / 45, 13, 40))
    font, line = ImageFont.load_default(size), round(size * 1.7)
    texts = [f"{name}  {100 * share:.1f} %" for name, share in zip(classes, shares)]
    cell = max((round(font.getlength(text)) for text in texts), default=0) + 3 * size
    most_rows = max(1, (height - size // 2) // line)
    columns = max(1, max(width, 320) // cell, -(-len(texts) // most_rows))
    rows = -(-len(texts) // columns)
    sheet = Image.new("RGB", (max(width, min(columns, len(texts)) * cell), height + rows * line + size // 2), "white")
    sheet.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, (text, color) in enumerate(zip(texts, colors)):
        x = (index // rows) * cell + size // 2
        y = height + (index % rows) * line + size // 3
        draw.rectangle((x, y, x + size, y + size), fill=color, outline=(60, 60, 60))
        draw.text((x + round(1.4 * size), y + size / 2), text, fill=(20, 20, 20), font=font, anchor="lm")
    return sheet
