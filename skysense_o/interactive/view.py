"""What the web page shows of a session: the image with masks, region and clicks on it, and tables as HTML."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from skysense_o.inference.automatic_masks import Proposal
from skysense_o.inference.drawing import NONE_COLOR, REGION_COLOR, Color, highlight, overlay
from skysense_o.interactive.session import Session

SHOWN_SIDE = 1000
"""Pixels; the browser makes it smaller where its window is."""
_COLOR = re.compile(r"\s*#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\s*$")


def words_and_colors(text: str | None) -> tuple[list[str], dict[str, Color]]:
    """ "road #e83cc8, building|house" -> (["road", "building|house"], {"road": (232, 60, 200)}); blank text -> nothing.

    Raises:
        ValueError: a # that no colour of three or six hexadecimal digits follows.
    """
    words, colors = [], {}
    for entry in text.split(",") if text and text.strip() else ():
        word = _COLOR.sub("", entry)
        if "#" in word:
            raise ValueError(f"{entry.strip()!r} has no colour after its #: write it as road #e83cc8")
        words.append(word)
        if word != entry:
            name = " ".join(word.split("|")[0].split())
            colors[name] = ImageColor.getrgb("#" + _COLOR.search(entry)[1])
    return words, colors


def page_zoom(session: Session) -> int:
    """How many times larger a small image is shown, so that it can be clicked on."""
    return max(1, SHOWN_SIDE // max(session.seen.size))


def render_view(session: Session, shown: Collection[str], opacity: float, zoom: int = 1) -> Image.Image:
    """The image with the masks of the classes `shown`, then proposals, region, clicks and box. opacity: 0..1."""
    image, found = session.image.rgb, session.found
    if found is not None:
        kept = np.isin(found.labels, [i for i, name in enumerate(found.classes) if name in shown])
        image = np.where(kept[..., None], overlay(image, found.labels, session.palette, opacity), image)
    if session.proposals:
        image = highlight(image, session.proposal_labels(), opacity)
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
    """A table: swatch, name, share, pixels, ground where it is known. Names are escaped."""
    rows = session.rows()
    ground = any(row["area_m2"] is not None for row in rows)
    lines = []
    for row in rows:
        color = "#{:02x}{:02x}{:02x}".format(*(NONE_COLOR if row["color"] is None else row["color"]))
        cells = [f"{100 * row['share']:.1f} %", f"{row['pixels']:,}", *([_area(row["area_m2"])] if ground else [])]
        lines.append(
            f'<tr><td><span class="swatch" style="background:{color}"></span>{escape(row["name"])}</td>'
            + "".join(f'<td class="number">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    heads = ["class", "share", "pixels", *(["area"] if ground else [])]
    head = "".join(f'<th class="{"" if i == 0 else "number"}">{h}</th>' for i, h in enumerate(heads))
    return f'<table class="legend"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _area(square_metres: float) -> str:
    if square_metres >= 1e6:
        return f"{square_metres / 1e6:,.2f} km²"
    return f"{square_metres:,.0f} m²"


def region_text(session: Session, ranked: Sequence[tuple[str, float]]) -> str:
    """The region's size, what it is thought to be worth, and the classes it looks most like, with their cosines."""
    region = session.region
    size = f"{int(region.mask.sum()):,} pixels"
    worth = "the box itself" if region.iou_pred is None else f"IoU thought to be {region.iou_pred:.2f}"
    classes = "".join(f"<li>{escape(name)} <small>{value:.3f}</small></li>" for name, value in ranked)
    return f'<div class="region"><b>Region</b>: {size}, {worth}. It looks most like<ol>{classes}</ol></div>'


def proposals_text(proposals: Sequence[Proposal]) -> str:
    """How many regions were found, and how often each best name was given."""
    counts: dict[str, int] = {}
    for proposal in proposals:
        counts[proposal.classes[0][0]] = counts.get(proposal.classes[0][0], 0) + 1
    classes = ", ".join(f"{escape(n)} ({c})" for n, c in sorted(counts.items(), key=lambda pair: -pair[1])[:12])
    return (
        f'<div class="region"><b>{len(proposals)} regions</b> without a word{": " + classes if classes else ""}.</div>'
    )
