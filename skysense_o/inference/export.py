"""Write what was found: overlay, label map, probabilities, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.inference.drawing import NONE_COLOR, Color, colors_for, overlay, with_legend
from skysense_o.inference.predictor import NONE, Segmentation
from skysense_o.whole_files import whole, write_json

FORMATS = ("overlay", "labels", "probabilities", "json")
MOST_8_BIT = 254


def palette_of(
    classes: Sequence[str], given: Sequence[Color] | None = None, has_none: bool | None = None
) -> list[Color]:
    """A colour for each id; "none" is grey. given: for the asked names, in their order."""
    if classes[0] == NONE if has_none is None else has_none:
        return [NONE_COLOR, *colors_for(classes[1:], given)]
    return colors_for(classes, given)


def save(
    found: Segmentation,
    image: np.ndarray,
    folder: Path,
    stem: str,
    formats: Sequence[str],
    settings: dict,
    colors: Sequence[Color] | None = None,
) -> list[Path]:
    """Write the formats asked for into `folder` as `<stem>_...`; the paths, in order. settings go into the JSON."""
    palette, written = palette_of(found.classes, colors, found.has_none), []
    if "overlay" in formats:
        laid = overlay(image, found.labels, palette)
        if found.valid is not None:
            laid[~found.valid] = 255
        shares = [row["share"] for row in found.areas()]
        written.append(folder / f"{stem}_overlay.png")
        write_png(written[-1], with_legend(laid, found.classes, palette, shares))
    if "labels" in formats:
        kind = np.uint8 if len(found.classes) <= MOST_8_BIT else np.uint16
        written.append(folder / f"{stem}_labels.png")
        write_png(written[-1], Image.fromarray(found.labels.astype(kind)))
    if "probabilities" in formats:
        written.append(folder / f"{stem}_probabilities.npz")
        kept = found.probabilities.astype(np.float16)
        with whole(written[-1]) as part, open(part, "wb") as file:
            np.savez_compressed(file, probabilities=kept, class_names=found.vocabulary.classes)
    if "json" in formats:
        rows = [{**row, "color": list(color)} for row, color in zip(found.areas(), palette)]
        written.append(folder / f"{stem}.json")
        write_json(written[-1], {"classes": rows, "presence": found.presence, "settings": settings})
    return written


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG atomically; see `whole`."""
    with whole(path) as part:
        image.save(part, format="PNG")
