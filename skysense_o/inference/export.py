"""Write what was found: overlay, label map, probabilities, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.inference.drawing import NONE_COLOR, Color, colors_for, overlay, with_legend
from skysense_o.inference.predictor import NONE, Segmentation

FORMATS = ("overlay", "labels", "probabilities", "json")
MOST_8_BIT = 254


def palette_of(classes: Sequence[str], given: Sequence[Color] | None = None) -> list[Color]:
    """A colour for each id; "none" is grey. given: for the asked names, in their order."""
    if classes[0] == NONE:
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
    folder.mkdir(parents=True, exist_ok=True)
    palette, written = palette_of(found.classes, colors), []
    if "overlay" in formats:
        laid = overlay(image, found.labels, palette)
        if found.valid is not None:
            laid[~found.valid] = 255
        shares = [row["share"] for row in found.areas()]
        written.append(folder / f"{stem}_overlay.png")
        with_legend(laid, found.classes, palette, shares).save(written[-1])
    if "labels" in formats:
        kind = np.uint8 if len(found.classes) <= MOST_8_BIT else np.uint16
        written.append(folder / f"{stem}_labels.png")
        Image.fromarray(found.labels.astype(kind)).save(written[-1])
    if "probabilities" in formats:
        written.append(folder / f"{stem}_probabilities.npz")
        np.savez_compressed(
            written[-1], probabilities=found.probabilities.astype(np.float16), class_names=found.vocabulary.classes
        )
    if "json" in formats:
        rows = [{**row, "color": list(color)} for row, color in zip(found.areas(), palette)]
        written.append(folder / f"{stem}.json")
        body = {"classes": rows, "presence": found.presence, "settings": settings}
        written[-1].write_text(json.dumps(body, indent=1))
    return written
