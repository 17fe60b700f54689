"""What the web page shows of a session: the image with masks, region and points, and tables as HTML."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from skysense_o.inference.automatic_masks import Proposal
from skysense_o.inference.drawing import NONE_COLOR, REGION_COLOR, Color, highlight, overlay
from skysense_o.interactive.session import Session
from skysense_o.words import OTHER_SIGNS, split_words

SHOWN_SIDE = 1000
"""Longest side of the displayed image in pixels; the browser scales it down to its window."""
_COLOR = re.compile(r"\s*#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\s*$")


def words_and_colors(text: str | None) -> tuple[list[str], dict[str, Color]]:
    """ "road #e83cc8, building|house" -> (["road", "building|house"], {"road": (232, 60, 200)}); blank text -> nothing.

    Raises:
        ValueError: a # without a colour of three or six hexadecimal digits.
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


def page_zoom(session: Session) -> int:
    """The whole factor by which a small image is enlarged, so that it can be clicked on."""
    return max(1, SHOWN_SIDE // max(session.seen.size))


def render_view(session: Session, shown: Collection[str], opacity: float, zoom: int = 1) -> Image.Image:
    """Draw the masks, proposals, region, points and box over the image.

    Args:
        session: with an image.
        shown: classes whose masks are drawn.
        opacity: of masks, 0..1.
        zoom: factor by which the image is enlarged.
    """
    image, found = session.image.rgb, session.found
    if found is not None:
        kept = np.isin(found.labels, [i for i, name in enumerate(found.classes) if name in shown])
        image = np.where(kept[..., None], overlay(image, found.labels, session.palette, opacity), image)
    if session.proposal_labels is not None:
        image = highlight(image, session.proposal_labels, opacity)
    region = session.region
    if region is not None:
        image = highlight(image, region.mask.astype(np.uint8), opacity)
    canvas = Image.fromarray(image)
    if zoom > 1:
        canvas = canvas.resize((canvas.width * zoom, canvas.height * zoom), Image.Resampling.BICUBIC)
    draw, size = ImageDraw.Draw(canvas), max(3, max(canvas.size) // 150)
    if region is not None and region.box is not None:
        x0, y0, x1, y1 = region.box
        corners = (x0 * zoom, y0 * zoom, x1 * zoom - 1, y1 * zoom - 1)
        draw.rectangle(corners, outline=REGION_COLOR, width=max(1, size // 3))
    for (x, y), inside in zip(region.points, region.labels) if region is not None else ():
        _dot(draw, (x + 0.5) * zoom, (y + 0.5) * zoom, size, (40, 200, 60) if inside else (220, 40, 40))
    if session.corner is not None:
        _dot(draw, *((value + 0.5) * zoom for value in session.corner), size, REGION_COLOR)
    return canvas


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, size: int, color: Color) -> None:
    draw.ellipse((x - size, y - size, x + size, y + size), fill=color, outline="white", width=max(1, size // 3))


def legend(session: Session) -> str:
    """HTML table of the classes: colour, name, share, pixels, and area if it is known. Names are escaped."""
    rows = session.rows()
    known = any(row["area_m2"] is not None for row in rows)
    lines = []
    for row in rows:
        color = "#{:02x}{:02x}{:02x}".format(*(NONE_COLOR if row["color"] is None else row["color"]))
        cells = [f"{100 * row['share']:.1f} %", f"{row['pixels']:,}", *([_area(row["area_m2"])] if known else [])]
        lines.append(
            f'<tr><td><span class="swatch" style="background:{color}"></span>{escape(row["name"])}</td>'
            + "".join(f'<td class="number">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    heads = ["class", "share", "pixels", *(["area"] if known else [])]
    head = "".join(f'<th class="{"" if i == 0 else "number"}">{h}</th>' for i, h in enumerate(heads))
    return f'<table class="legend"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _area(square_metres: float) -> str:
    if square_metres >= 1e6:
        return f"{square_metres / 1e6:,.2f} km²"
    return f"{square_metres:,.0f} m²"


def region_text(session: Session, ranked: Sequence[tuple[str, float]]) -> str:
    """HTML: the region's size and predicted IoU, and the most similar classes with their cosines."""
    region = session.region
    size = f"{int(region.mask.sum()):,} pixels"
    quality = "the box itself" if region.iou_pred is None else f"predicted IoU {region.iou_pred:.2f}"
    classes = "".join(f"<li>{escape(name)} <small>{value:.3f}</small></li>" for name, value in ranked)
    return f'<div class="region"><b>Region</b>: {size}, {quality}. Most similar classes:<ol>{classes}</ol></div>'


def proposals_text(proposals: Sequence[Proposal]) -> str:
    """HTML: the number of regions, and how many of them each class is best for."""
    counts: dict[str, int] = {}
    for proposal in proposals:
        counts[proposal.classes[0][0]] = counts.get(proposal.classes[0][0], 0) + 1
    classes = ", ".join(f"{escape(n)} ({c})" for n, c in sorted(counts.items(), key=lambda pair: -pair[1])[:12])
    listed = f": {classes}" if classes else ""
    return f'<div class="region"><b>{len(proposals)} regions</b> found without words{listed}.</div>'
