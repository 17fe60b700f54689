"""Overlays, legends and label images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
NONE_COLOR: Color = (96, 96, 96)
REGION_COLOR: Color = (255, 210, 0)
MOST_IN_LEGEND = 30

_KNOWN: dict[str, Color] = {
    "water": (38, 120, 226), "river": (38, 120, 226), "lake": (30, 144, 255), "sea": (20, 84, 190),
    "land": (226, 196, 128), "bare land": (226, 196, 128), "sand": (240, 214, 150), "soil": (176, 128, 80),
    "road": (232, 60, 200), "street": (232, 60, 200), "building": (214, 48, 40), "house": (230, 84, 70),
    "vegetation": (46, 152, 62), "tree": (22, 110, 40), "forest": (16, 90, 34), "grass": (130, 196, 70),
    "ground": (204, 160, 96), "field": (190, 204, 90), "bush": (84, 140, 50), "roof": (230, 84, 70),
    "car": (250, 170, 20), "town": (190, 70, 90), "ocean": (20, 84, 190), "snow": (236, 240, 248),
}  # fmt: skip


def colors_for(classes: Sequence[str], given: Sequence[Color] | None = None) -> list[Color]:
    """One RGB colour a name: those given, else the customary one, else well-spread hues; never the same one twice."""
    if given is not None:
        return list(given)
    taken, colors = set(), []
    for index, name in enumerate(classes):
        color = _KNOWN.get(name.lower()) or _KNOWN.get(name.lower().removesuffix("s"))
        step = index
        while color is None or color in taken:
            hue = (step * 0.618034) % 1.0  # golden ratio: neighbours in the list are far apart on the wheel
            light = (0.95, 0.7, 0.85)[(step // 7) % 3]
            color = tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, (0.8, 0.95, 0.55)[step % 3], light))
            step += 1
        taken.add(color)
        colors.append(color)
    return colors


def color_labels(labels: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """(H,W) ids -> (H,W,3) uint8; ids beyond the colours become black."""
    table = np.zeros((max(len(colors), int(labels.max(initial=0)) + 1), 3), np.uint8)
    table[: len(colors)] = colors
    return table[labels]


def overlay(image: np.ndarray, labels: np.ndarray, colors: Sequence[Color], opacity: float = 0.5) -> np.ndarray:
    """(H,W,3) uint8 with the masks laid over it and their borders drawn in full colour."""
    painted = color_labels(labels, colors)
    mixed = (image * (1 - opacity) + painted * opacity).astype(np.uint8)
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[edge] = painted[edge]
    return mixed


def highlight(image: np.ndarray, labels: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """(H,W,3) uint8 with the regions numbered from 1 laid over it, each in its colour; id 0 stays as it is."""
    count = int(labels.max(initial=0))
    colors = [REGION_COLOR] if count == 1 else colors_for([""] * count)
    return np.where((labels > 0)[..., None], overlay(image, labels, [NONE_COLOR, *colors], opacity), image)


def with_legend(
    image: np.ndarray, classes: Sequence[str], colors: Sequence[Color], shares: Sequence[float]
) -> Image.Image:
    """The image with a strip below it: swatch, name and share of each class. Text never covers the image.

    Of more than MOST_IN_LEGEND names only the largest are listed, and how many more there are.
    """
    if len(classes) > MOST_IN_LEGEND:
        order = sorted(range(len(classes)), key=lambda i: -shares[i])[: MOST_IN_LEGEND - 1]
        rest = 1 - sum(shares[i] for i in order)
        title = f"{len(classes) - len(order)} more"
        classes, colors = [*(classes[i] for i in order), title], [*(colors[i] for i in order), (255, 255, 255)]
        shares = [*(shares[i] for i in order), rest]
    height, width = image.shape[:2]
    canvas_width = max(width, 320)
    size = int(np.clip(canvas_width / 45, 13, 40))
    font = ImageFont.load_default(size)
    texts = [f"{name}  {100 * share:.1f} %" for name, share in zip(classes, shares)]
    cell = min(canvas_width, max(round(font.getlength(text)) for text in texts) + 3 * size)
    columns = max(1, canvas_width // cell)
    rows = -(-len(texts) // columns)
    line = round(size * 1.7)
    sheet = Image.new("RGB", (canvas_width, height + rows * line + size // 2), "white")
    sheet.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, (text, color) in enumerate(zip(texts, colors)):
        x = (index % columns) * cell + size // 2
        y = height + (index // columns) * line + size // 3
        draw.rectangle((x, y, x + size, y + size), fill=color, outline=(60, 60, 60))
        draw.text((x + round(1.4 * size), y + size / 2), text, fill=(20, 20, 20), font=font, anchor="lm")
    return sheet
