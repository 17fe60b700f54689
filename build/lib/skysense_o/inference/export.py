"""Write a segmentation: overlay, label map, probabilities, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.inference.colors import FEW, NONE_COLOR, Color, colors_for
from skysense_o.inference.drawing import overlay, with_legend
from skysense_o.inference.segmentation import NONE, Segmentation
from skysense_o.whole_files import whole, write_json

FORMATS = ("overlay", "labels", "probabilities", "json")
MAX_8_BIT = 254
"""Largest number of classes whose ids are stored in 8 bits."""


def palette_of(
    classes: Sequence[str],
    given: Sequence[Color] | None = None,
    shares: Sequence[float] | None = None,
    has_none: bool | None = None,
) -> list[Color]:
    """Choose one color per id; "none" is grey.

    Args:
        classes: class per id.
        given: RGB per class, without "none"; colors that are too similar are changed, see `colors_for`.
        has_none: whether id 0 stands for pixels of no class; None: if it is called "none".
        shares: 0..1 per id. Of more than 12 classes, those with the largest shares get clearly different colors.

    >>> palette_of(("none", "water"))
    [(96, 96, 96), (38, 120, 226)]
    """
    first = int(classes[0] == NONE if has_none is None else has_none)
    order = list(range(len(classes) - first))
    if shares is not None and len(classes) - first > FEW:
        order.sort(key=lambda i: -shares[i + first])
    given = None if given is None else [given[i] for i in order]
    colors = colors_for([classes[i + first] for i in order], given, [NONE_COLOR] * first)
    return [NONE_COLOR] * first + [color for _, color in sorted(zip(order, colors))]


def listed(rows: Sequence[dict], min_share: float) -> list[dict]:
    """Select and sort the rows of classes to show.

    Args:
        rows: with key "share", 0..1.
        min_share: 0 for all rows in their order; else only rows with at least this share, the largest first.

    >>> listed([{"id": 0, "share": 0.0005}, {"id": 1, "share": 0.3}, {"id": 2, "share": 0.6995}], 0.001)
    [{'id': 2, 'share': 0.6995}, {'id': 1, 'share': 0.3}]
    """
    if not min_share:
        return list(rows)
    return sorted((row for row in rows if row["share"] >= min_share), key=lambda row: -row["share"])


def draw_legend(image: np.ndarray, rows: Sequence[dict], min_share: float = 0.0) -> Image.Image:
    """Add a legend of the listed classes.

    Args:
        image: uint8 (H,W,3), RGB.
        rows: with keys "name", "color" and "share", see `listed`.
    """
    rows = listed(rows, min_share)
    return with_legend(image, *([row[key] for row in rows] for key in ("name", "color", "share")))


def save(
    segmentation: Segmentation,
    image: np.ndarray,
    folder: Path,
    stem: str,
    formats: Sequence[str],
    settings: dict,
    colors: Sequence[Color] | None = None,
    min_share: float = 0.0,
) -> list[Path]:
    """Write a segmentation into files called `<stem>_...`.

    Args:
        image: uint8 (H,W,3), RGB.
        folder: is created if necessary.
        formats: some of FORMATS.
        settings: stored in the JSON.
        colors: RGB per class, without the background; None for the default colors.
        min_share: if above 0, classes are sorted by share, and the legend leaves out those below this share.

    Returns:
        The paths of the files.
    """
    rows, written = segmentation.areas(), []
    palette = palette_of(segmentation.classes, colors, [row["share"] for row in rows], segmentation.has_none)
    rows = [{**row, "color": color} for row, color in zip(rows, palette)]
    if "overlay" in formats:
        blended = overlay(image, segmentation.labels, palette)
        if segmentation.valid is not None:
            blended[~segmentation.valid] = 255
        written.append(folder / f"{stem}_overlay.png")
        write_png(written[-1], draw_legend(blended, rows, min_share))
    if "labels" in formats:
        dtype = np.uint8 if len(segmentation.classes) <= MAX_8_BIT else np.uint16
        written.append(folder / f"{stem}_labels.png")
        write_png(written[-1], Image.fromarray(segmentation.labels.astype(dtype)))
    if "probabilities" in formats:
        written.append(folder / f"{stem}_probabilities.npz")
        probabilities = segmentation.probabilities.astype(np.float16)
        with whole(written[-1]) as part, open(part, "wb") as file:
            np.savez_compressed(file, probabilities=probabilities, class_names=segmentation.vocabulary.classes)
    if "json" in formats:
        written.append(folder / f"{stem}.json")
        rows = sorted(rows, key=lambda row: -row["share"]) if min_share else rows
        write_json(written[-1], {"classes": rows, "presence": segmentation.presence, "settings": settings})
    return written


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG atomically; see `whole`."""
    with whole(path) as part:
        image.save(part, format="PNG")
