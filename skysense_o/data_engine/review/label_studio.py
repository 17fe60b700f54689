"""Regions to and from Label Studio: tasks with brush masks as its predictions, which annotators correct.

A brush mask is run lengths over the image's RGBA values, packed in bits: the count of values (32 bits), word size
less 1 (5), four run sizes less 1 (4 each); then blocks of a flag (1 bit: one value repeated, or values one by one),
which of the run sizes (2), a length less 1, and the value or values. The mask is the alpha channel.
"""

from __future__ import annotations

import itertools
from html import escape

import numpy as np

from skysense_o.data_engine.review.exchange import ExchangedRegion, exchanged_regions, tile_of
from skysense_o.data_engine.review.masks import polygons_mask
from skysense_o.data_engine.review.session import Review

WORD = 8
RUN_SIZES = (3, 4, 8, 16)
FILES = "/data/local-files/?d=tiles/"
"""Where Label Studio finds files of a folder of its own machine, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


def to_label_studio(review: Review, reviewer: str | None = None, files: str = FILES) -> list[dict]:
    """One task a tile. files: what stands before a tile's file name in its image's address."""
    tasks = []
    for tile in review.tiles:
        height, width = review.tiles.labels(tile).shape
        results = [
            {
                "id": f"region{one.region}",
                "type": "brushlabels",
                "from_name": "brush",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": pack_brush(one.mask), "brushlabels": [one.name]},
            }
            for one in exchanged_regions(review, tile, reviewer)
            if one.mask.any()
        ]
        data = {"image": f"{files}{tile}.png", "tile": tile}
        tasks.append({"data": data, "predictions": [{"model_version": reviewer or "proposed", "result": results}]})
    return tasks


def labelling_config(names) -> str:
    """The project's labelling interface: brush, polygons and boxes with these names."""
    labels = "".join(f'<Label value="{escape(name)}"/>' for name in sorted(names))
    tools = {"brush": "BrushLabels", "polygon": "PolygonLabels", "box": "RectangleLabels"}
    rows = "".join(f'<{tag} name="{name}" toName="image">{labels}</{tag}>' for name, tag in tools.items())
    return f'<View><Image name="image" value="$image" zoom="true"/>{rows}</View>\n'


def from_label_studio(review: Review, tasks: list[dict], reviewer: str) -> dict[tuple[str, str], list[ExchangedRegion]]:
    """(annotator, tile) -> annotations, of a JSON export. Tasks nobody finished and other images are left out.

    reviewer: who annotated where the file does not say.

    Raises:
        ValueError: a mask that does not have its tile's size, or a turned box.
    """
    found = {}
    for task in tasks:
        data = task.get("data", {})
        tile = tile_of(review, data.get("tile") or data.get("image", ""))
        for annotation in task.get("annotations", ()) if tile else ():
            if not annotation.get("was_cancelled"):
                who, size = _annotator(annotation, reviewer), review.tiles.labels(tile).shape
                found[who, tile] = [one for row in annotation["result"] if (one := _annotation(row, size, tile))]
    return found


def _annotator(annotation: dict, reviewer: str) -> str:
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return reviewer if who is None else f"label-studio {who}"


def _annotation(row: dict, size: tuple[int, int], tile: str) -> ExchangedRegion | None:
    value, kind = row.get("value", {}), row.get("type")
    if kind not in ("brushlabels", "polygonlabels", "rectanglelabels") or not value.get(kind):
        return None
    drawn = row.get("original_height", size[0]), row.get("original_width", size[1])
    if tuple(drawn) != tuple(size):
        raise ValueError(f"{tile} has {size[1]} x {size[0]} pixels, and was annotated at {drawn[1]} x {drawn[0]}")
    number = str(row.get("id", "")).removeprefix("region")
    region = int(number) if number.isdigit() else None
    if kind == "brushlabels":
        return ExchangedRegion(unpack_brush(value["rle"], size), value[kind][0], region)
    if value.get("rotation"):
        raise ValueError(f"{tile} has a turned box, which is not read: draw a polygon instead")
    scale = np.array([size[1], size[0]]) / 100
    if kind == "polygonlabels":
        points = np.array(value["points"], float)
    else:
        (x, y), (w, h) = (value["x"], value["y"]), (value["width"], value["height"])
        points = np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], float)
    return ExchangedRegion(
        polygons_mask([(points * scale).ravel().tolist()], size), value[kind][0], region, exact=False
    )


def pack_brush(mask: np.ndarray) -> list[int]:
    """bool (H,W) -> bytes as numbers."""
    flat = mask.ravel().astype(np.uint8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = [0, *edges.tolist()]
    bits = [f"{4 * flat.size:032b}{WORD - 1:05b}" + "".join(f"{size - 1:04b}" for size in RUN_SIZES)]
    most = 1 << RUN_SIZES[-1]
    for start, end in itertools.pairwise([*starts, flat.size]):
        value, left = 255 * int(flat[start]), 4 * (end - start)
        while left:
            count = min(left, most)
            which = next(k for k, size in enumerate(RUN_SIZES) if count <= 1 << size)
            bits.append(f"1{which:02b}{count - 1:0{RUN_SIZES[which]}b}{value:0{WORD}b}")
            left -= count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def unpack_brush(packed: list[int], size: tuple[int, int]) -> np.ndarray:
    """Bytes as numbers -> bool (H,W).

    Raises:
        ValueError: run lengths that do not make an image of this size.
    """
    bits = "".join(f"{byte:08b}" for byte in packed)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError(f"a brush mask ends after {len(packed)} bytes, before its image is whole")
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"a brush mask has {total} values, and a tile of {size[1]} x {size[0]} has 4 a pixel")
    sizes = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    at = 0
    while at < total:
        repeated, count = read(1), read(sizes[read(2)]) + 1
        values[at : at + count] = read(word) if repeated else [read(word) for _ in range(count)]
        at += count
    return values.reshape(*size, 4)[..., 3] > 0
