"""Export to and import from Label Studio. Regions are exported as brush masks in predictions, which people correct.

Label Studio encodes a brush mask as run lengths over the image's RGBA values, packed as bits; the mask is the alpha
channel. The header has the number of values (32 bits), the word size minus 1 (5 bits) and four run sizes minus 1 (4
bits each). Blocks follow. Each block has a flag (1 bit: 1 for one repeated value, 0 for single values), the index of a
run size (2 bits), the length minus 1 (as many bits as this run size), and the value or values.
"""

from __future__ import annotations

import itertools
from html import escape

import numpy as np

from skysense_o.data_engine.review.exchange import UNNAMED, ExchangedRegion, exchanged_regions, tile_of
from skysense_o.data_engine.review.masks import polygons_mask
from skysense_o.data_engine.review.session import Review
from skysense_o.text_files import checked, take

WORD = 8
RUN_SIZES = (3, 4, 8, 16)
SHAPES = ("brush", "polygon", "rectangle", "ellipse")
"""Tools whose drawings can be read; results of other types are reported."""
ELLIPSE_CORNERS = 72
FILES = "/data/local-files/?d=tiles/"
"""URL prefix of Label Studio's local files, which are below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


def to_label_studio(review: Review, reviewer: str | None = None, files: str = FILES) -> list[dict]:
    """Export all regions as Label Studio tasks, one per tile.

    Args:
        review: the review.
        reviewer: export the regions after this reviewer's decisions; None: the regions as proposed.
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
    """The XML of Label Studio's interface, with brush, polygon, box and ellipse tools for these class names."""
    labels = "".join(f'<Label value="{escape(name)}"/>' for name in sorted(names))
    tools = {
        "brush": "BrushLabels", "polygon": "PolygonLabels", "box": "RectangleLabels", "ellipse": "EllipseLabels",
    }  # fmt: skip
    rows = "".join(f'<{tag} name="{name}" toName="image">{labels}</{tag}>' for name, tag in tools.items())
    return f'<View><Image name="image" value="$image" zoom="true"/>{rows}</View>\n'


def from_label_studio(review: Review, tasks: list[dict], reviewer: str) -> dict[tuple[str, str], list[ExchangedRegion]]:
    """Import a JSON export of Label Studio.

    Results with the same id are one region: if Label Studio's interface has separate tools for drawing and for labels,
    it writes a drawing and its label as two results. A drawing without a label keeps the region, but does not name it.

    Args:
        review: the review.
        tasks: the file's content.
        reviewer: name of the annotator where the file has none.

    Returns:
        (annotator, tile) -> annotations. Cancelled annotations, and images that are not tiles of this review, are left
        out. A result whose type cannot be read is included, with its type as `unread`.

    Raises:
        ValueError: an entry is not in Label Studio's format, or a mask is not of its tile's size.
    """
    imported = {}
    for place, task in enumerate(checked(tasks, list, "the file"), 1):
        where = f"task {place}"
        data = take(task, "data", dict, where, {})
        tile = tile_of(review, data.get("tile") or data.get("image", ""))
        for annotation in take(task, "annotations", list, where, []) if tile else ():
            if not take(annotation, "was_cancelled", (bool, type(None)), where, False):
                who, size = _annotator(annotation, reviewer, where), review.tiles.labels(tile).shape
                results = take(annotation, "result", list, where)
                imported[who, tile] = [_region(rows, size, tile) for rows in _by_id(results, where)]
    return imported


def _annotator(annotation: dict, reviewer: str, where: str) -> str:
    who = take(annotation, "completed_by", (dict, int, str, type(None)), where, None)
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return reviewer if who is None else f"label-studio {who}"


def _by_id(results: list, where: str) -> list[list[dict]]:
    """The results of an annotation, grouped by id, in order."""
    groups: dict[str, list[dict]] = {}
    for place, row in enumerate(results):
        number = take(row, "id", (str, int, type(None)), f"{where}, a result", None)
        groups.setdefault(f"unnumbered {place}" if number is None else str(number), []).append(row)
    return list(groups.values())


def _region(rows: list[dict], size: tuple[int, int], tile: str) -> ExchangedRegion:
    """Combine the results with the same id, which draw and name one region."""
    number = str(rows[0].get("id", "")).removeprefix("region")
    region = int(number) if number.isdecimal() and len(number) < 10 else None
    kinds = [take(row, "type", str, f"{tile}, a result", "") for row in rows]
    drawn = [k for k, kind in enumerate(kinds) if kind.removesuffix("labels") in SHAPES]
    if not drawn:
        return ExchangedRegion(np.zeros(size, bool), UNNAMED, region, unread=", ".join(sorted(set(kinds))) or "none")
    name = UNNAMED
    for kind, row in zip(kinds, rows):
        names = take(take(row, "value", dict, tile, {}), kind, list, tile, []) if kind.endswith("labels") else []
        name = checked(names[0], str, f"{tile}, a label") if names else name
    mask, exact = np.zeros(size, bool), True
    for k in drawn:
        mask |= _drawing(rows[k], kinds[k].removesuffix("labels"), size, tile)
        exact = exact and kinds[k].startswith("brush")
    return ExchangedRegion(mask, name, region, exact)


def _drawing(row: dict, shape: str, size: tuple[int, int], tile: str) -> np.ndarray:
    """Rasterise the shape in `row`, one result of Label Studio -> bool (H,W).

    The coordinates of shapes other than brushes are in percent of the image's sides.
    """
    where = f"{tile}, a {shape}"
    drawn = take(row, "original_height", int, where, size[0]), take(row, "original_width", int, where, size[1])
    if drawn != tuple(size):
        raise ValueError(f"{tile} has {size[1]} x {size[0]} pixels, but was annotated at {drawn[1]} x {drawn[0]}")
    if take(row, "image_rotation", float, where, 0):
        raise ValueError(f"{where} was drawn on a rotated image: rotate the image back in Label Studio")
    value = take(row, "value", dict, where)
    if shape == "brush":
        try:
            return unpack_brush(take(value, "rle", list, where), size)
        except ValueError as error:
            raise ValueError(f"{tile}: {error}") from error
    scale = np.array([size[1], size[0]]) / 100
    if shape == "polygon":
        points = [checked(point, list, f"{where}: a point") for point in take(value, "points", list, where)]
        corners = [[checked(n, float, f"{where}: a coordinate") for n in point] for point in points]
        if any(len(corner) != 2 for corner in corners):
            raise ValueError(f"{where} has a point without two coordinates")
        return polygons_mask([(np.array(corners, float).reshape(-1, 2) * scale).ravel().tolist()], size)
    keys = ("x", "y", "width", "height") if shape == "rectangle" else ("x", "y", "radiusX", "radiusY")
    x, y, across, down = (take(value, key, float, where) for key in keys)
    angle = np.deg2rad(take(value, "rotation", float, where, 0))
    if shape == "rectangle":
        outline = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    else:
        turn = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
        outline = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    outline = outline * (across, down) * scale
    # Label Studio rotates a rectangle around its first corner and an ellipse around its centre, in pixels, clockwise.
    turned = outline @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return polygons_mask([(turned + np.array([x, y]) * scale).ravel().tolist()], size)


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
    if not all(isinstance(byte, int) and 0 <= byte < 256 for byte in packed):
        raise ValueError("a brush mask is not a list of bytes: give whole numbers from 0 to 255")
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
    if word != WORD:
        raise ValueError(f"a brush mask has values of {word} bits: expected {WORD}")
    sizes = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    index = 0
    while index < total:
        repeated, count = read(1), read(sizes[read(2)]) + 1
        if index + count > total:
            raise ValueError(f"a brush mask has more than the {total} values of its image")
        values[index : index + count] = read(word) if repeated else [read(word) for _ in range(count)]
        index += count
    return values.reshape(*size, 4)[..., 3] > 0
