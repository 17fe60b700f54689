"""Export to and import from Label Studio. Regions are exported as brush masks in predictions, which people correct.

Label Studio encodes a brush mask as run lengths over the image's RGBA values, packed as bits. Header: number of values
(32 bits), word size - 1 (5 bits), four run sizes - 1 (4 bits each). Then blocks: a flag (1 bit: one repeated value, or
single values), the index of a run size (2 bits), length - 1, and the value or values. The mask is the alpha channel.
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
"""URL prefix of Label Studio's local files, which are below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


def to_label_studio(review: Review, reviewer: str | None = None, files: str = FILES) -> list[dict]:
    """Export all regions as Label Studio tasks, one per tile.

    Args:
        review: the review.
        reviewer: export this reviewer's regions; None for the regions as proposed.
        files: prefix of the image URLs.
    """
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
    """The XML of Label Studio's labelling interface, with brush, polygon and box tools for these class names."""
    labels = "".join(f'<Label value="{escape(name)}"/>' for name in sorted(names))
    tools = {"brush": "BrushLabels", "polygon": "PolygonLabels", "box": "RectangleLabels"}
    rows = "".join(f'<{tag} name="{name}" toName="image">{labels}</{tag}>' for name, tag in tools.items())
    return f'<View><Image name="image" value="$image" zoom="true"/>{rows}</View>\n'


def from_label_studio(review: Review, tasks: list[dict], reviewer: str) -> dict[tuple[str, str], list[ExchangedRegion]]:
    """Import a JSON export of Label Studio.

    Args:
        review: the review.
        tasks: the file's content.
        reviewer: name of the annotator where the file has none.

    Returns:
        (annotator, tile) -> annotations. Unfinished tasks and images that are not tiles of this review are left out.

    Raises:
        ValueError: a mask has not its tile's size, or a box is rotated.
    """
    imported = {}
    for task in tasks:
        data = task.get("data", {})
        tile = tile_of(review, data.get("tile") or data.get("image", ""))
        for annotation in task.get("annotations", ()) if tile else ():
            if not annotation.get("was_cancelled"):
                who, size = _annotator(annotation, reviewer), review.tiles.labels(tile).shape
                imported[who, tile] = [one for row in annotation["result"] if (one := _annotation(row, size, tile))]
    return imported


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
        raise ValueError(f"{tile} has a rotated box, which is not supported: draw a polygon instead")
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
    """Encode a mask, bool (H,W), in Label Studio's format: a list of bytes as integers."""
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
    """Decode Label Studio's format.

    Args:
        packed: bytes as integers.
        size: (H,W).

    Returns:
        bool (H,W).

    Raises:
        ValueError: the runs do not make an image of this size.
    """
    bits = "".join(f"{byte:08b}" for byte in packed)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise ValueError(f"a brush mask ends after {len(packed)} bytes, before its image is complete")
        return int(bits[position - count : position], 2)

    total, word = read(32), read(5) + 1
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"a brush mask has {total} values, but {size[1]} x {size[0]} pixels have 4 values each")
    sizes = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    index = 0
    while index < total:
        repeated, count = read(1), read(sizes[read(2)]) + 1
        values[index : index + count] = read(word) if repeated else [read(word) for _ in range(count)]
        index += count
    return values.reshape(*size, 4)[..., 3] > 0
