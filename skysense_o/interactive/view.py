"""Encode a session for the browser: results as JSON, and maps of classes and regions as PNG, which the browser colours.

Shape letters: H W pixels of the image.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageColor

from skysense_o.inference.drawing import NONE_COLOR, Color
from skysense_o.inference.segmentation import Segmentation
from skysense_o.interactive.session import Session
from skysense_o.words import OTHER_SIGNS, split_words

SCORE_STEP = 4
"""Scores are sent in 64 steps, which makes the file three times smaller."""
MOST_CORNERS = 4000
"""Largest number of corners of an outline that is sent; an outline with more corners is simplified."""
_COLOR = re.compile(r"\s*#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\s*$")


def words_and_colors(text: str | None) -> tuple[list[str], dict[str, Color]]:
    """ "road #e83cc8, building|house" -> (["road", "building|house"], {"road": (232, 60, 200)}); blank text -> nothing.

    Raises:
        ValueError: a # is not followed by three or six hexadecimal digits.
    """
    words, colors = [], {}
    for entry in split_words(text or "", OTHER_SIGNS.replace("#", "")):
        word = _COLOR.sub("", entry)
        if "#" in word:
            raise ValueError(f"{entry.strip()!r} has no colour after its #: write it as road #e83cc8")
        words.append(word)
        if word != entry:
            name = " ".join(word.split("|")[0].split())
            colors[name] = ImageColor.getrgb("#" + _COLOR.search(entry)[1])
    return words, colors


def class_rows(session: Session) -> list[dict]:
    """One row per class as JSON: id, name, color as #rrggbb, share, pixels, area_m2 or None.

    A class outside of the training also has "doubt", a sentence.
    """
    rows = [dict(row) for row in session.rows()]
    doubts = session.predictor.unfamiliar(session.found.vocabulary)
    for row in rows:
        if row["name"] in doubts:
            row["doubt"] = doubts[row["name"]]
        none = session.found.has_none and not row["id"]
        color = NONE_COLOR if none or row["color"] is None else row["color"]
        row["color"] = "#{:02x}{:02x}{:02x}".format(*color)
    return rows


def class_png(session: Session) -> bytes:
    """The class and score per pixel as PNG: class = red + 256 blue, score = green / 255.

    Pixels without data, and pixels outside of the scene, have the class `found.nodata`.
    """
    found = session.found
    labels = found.labels if found.valid is None else np.where(found.valid, found.labels, found.nodata)
    score = np.clip(found.score * 255, 0, 255).astype(np.uint8) // SCORE_STEP * SCORE_STEP
    low, high = (labels & 255).astype(np.uint8), (labels >> 8).astype(np.uint8)
    return map_png(session, [low, score, high], (found.nodata & 255, 0, found.nodata >> 8))


def map_png(session: Session, channels: Sequence[np.ndarray], outside: Sequence[int] = (0, 0, 0)) -> bytes:
    """Up to three maps of a session as the channels of one PNG, on the grid that the browser shows.

    Args:
        channels: uint8 (H,W).
        outside: value per channel of pixels outside the scene.
    """
    if session.map is not None:
        channels = [session.map.warp(np.ascontiguousarray(c), value) for c, value in zip(channels, outside)]
    rgb = np.zeros((*channels[0].shape, 3), np.uint8)
    for k, channel in enumerate(channels):
        rgb[..., k] = channel
    return encoded(rgb, "png", compress_level=3)


def encoded(pixels: np.ndarray, format: str, **options) -> bytes:
    """Pixels uint8 (H,W,3) or (H,W,4) as a file of an image format."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format, **options)
    return data.getvalue()


def thumbnail(rgb: np.ndarray, side: int = 160) -> bytes:
    """A small JPEG of an image uint8 (H,W,3)."""
    image = Image.fromarray(rgb)
    image.thumbnail((2 * side, side))
    return encoded(np.asarray(image), "jpeg", quality=82)


def connected_part(session: Session, x: int, y: int) -> dict | None:
    """The connected pixels of one class around a pixel of the image; see `numbered_part`. None where there are no data.

    Raises:
        ValueError: the session has no segmentation yet, or the pixel is outside the image.
    """
    found = session.found  # read once, because another request may replace `session.found`
    height, width = session.image.rgb.shape[:2]
    if found is None:
        raise ValueError("nothing to measure yet: segment some words first")
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"({x}, {y}) lies outside the image, which is {width} x {height} (x, y)")
    if found.valid is not None and not found.valid[y, x]:
        return None
    parts, order = _parts(found, int(found.labels[y, x]))
    return _described(session, found, parts, order, int(np.flatnonzero(order == parts[y, x])[0]))


def numbered_part(session: Session, name: str, number: int) -> dict:
    """One of the connected parts of a class.

    Args:
        name: name of the class.
        number: from 1, the largest part.

    Returns:
        name, number, parts (how many there are), pixels, area_m2 or None, mean score, rings (outlines as lists of
        (x, y)) and inside (x, y, far from the outline), both on the grid that the browser shows.

    Raises:
        ValueError: the session has no such class, or the class has no part of this number.
    """
    found = session.found  # read once, as in `connected_part`
    classes = found.classes if found else ()
    if name not in classes:
        raise ValueError(f"there is no class {name!r}, there are: {', '.join(classes) or 'none yet'}")
    parts, order = _parts(found, classes.index(name))
    if not 1 <= number <= len(order):
        raise ValueError(f"there is no part {number} of {name!r}, which has {len(order)}")
    return _described(session, found, parts, order, number - 1)


def _parts(found: Segmentation, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of each pixel's part of a class, int32 (H,W), 0 elsewhere; and these numbers, the largest part first."""
    same = found.labels == label if found.valid is None else (found.labels == label) & found.valid
    _, parts, stats, _ = cv2.connectedComponentsWithStats(same.astype(np.uint8), connectivity=4)
    return parts, 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")


def _described(session: Session, found: Segmentation, parts: np.ndarray, order: np.ndarray, k: int) -> dict:
    part = parts == order[k]
    depth = cv2.distanceTransform(np.pad(part, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    inside = np.array([[x + 0.5, y + 0.5]])
    return {
        "name": found.classes[int(found.labels[y, x])],
        "number": k + 1,
        "parts": len(order),
        "pixels": int(part.sum()),
        "area_m2": square_metres(session, part),
        "score": float(found.score[part].mean()),
        "rings": outlines(session, part),
        "inside": (inside if session.map is None else session.map.places(inside))[0].tolist(),
    }


def square_metres(session: Session, mask: np.ndarray) -> float | None:
    """Area of a mask bool (H,W); None where it is unknown."""
    return None if session.areas is None else float(session.areas.at(*np.nonzero(mask)).sum())


def outlines(session: Session, mask: np.ndarray) -> list[list[tuple[float, float]]]:
    """Rings around a mask bool (H,W), along the edges of its pixels, on the grid that the browser shows."""
    # Each pixel is doubled: cv2's rings run through the middle of pixels and would not enclose parts one pixel wide.
    doubled = cv2.resize(np.pad(mask, 1).astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corners = sum(map(len, found))
    rings = []
    for ring in found:
        if corners > MOST_CORNERS:
            ring = cv2.approxPolyDP(ring, 1.0 + corners / MOST_CORNERS / 2, closed=True)
        if len(ring) < 3:
            continue
        xy = (ring[:, 0].astype(float) + 0.5) / 2 - 1
        if session.map is not None:
            xy = session.map.places(xy)
        rings.append(np.round(xy, 2).tolist())
    return rings
