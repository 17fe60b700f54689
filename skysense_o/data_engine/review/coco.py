"""Export and import of regions as a COCO annotation file, which many annotation programs read and write."""

from __future__ import annotations

import numpy as np

from skysense_o.clicks import box_from_mask
from skysense_o.data_engine.review.exchange import ExchangedRegion, exchanged_regions, tile_of
from skysense_o.data_engine.review.masks import polygons_mask, rle_mask, rle_of
from skysense_o.data_engine.review.session import Review
from skysense_o.text_files import checked, take

ID = (int, str)
"""Types of ids: in COCO's format ids are numbers, but some programs write text."""


def to_coco(review: Review, reviewer: str | None = None) -> dict:
    """Export all regions: one COCO annotation per region. Its additional key "region" is the region's number.

    Args:
        review: the review.
        reviewer: export the regions after this reviewer's decisions; None: the regions as proposed.
    """
    images, rows, names = [], [], set()
    for k, tile in enumerate(review.tiles, 1):
        height, width = review.tiles.labels(tile).shape
        images.append({"id": k, "file_name": f"tiles/{tile}.png", "height": height, "width": width})
        rows += [(k, one) for one in exchanged_regions(review, tile, reviewer) if one.mask.any()]
    names = sorted({one.name for _, one in rows})
    ids = {name: k for k, name in enumerate(names, 1)}
    return {
        "images": images,
        "categories": [{"id": k, "name": name} for name, k in ids.items()],
        "annotations": [_row(k, image, one, ids[one.name]) for k, (image, one) in enumerate(rows, 1)],
    }


def _row(number: int, image: int, one: ExchangedRegion, category: int) -> dict:
    x0, y0, x1, y1 = box_from_mask(one.mask)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": rle_of(one.mask),
        "area": int(one.mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
        "region": one.region,
    }


def from_coco(review: Review, data: dict) -> dict[str, list[ExchangedRegion]]:
    """Import a COCO file.

    If an annotation has neither polygons nor run lengths, its box is used as its mask.

    Args:
        review: the review.
        data: the file's content.

    Returns:
        tile -> its annotations. Images that are not tiles of this review and images without annotations are left out.

    Raises:
        ValueError: an entry is not in COCO's format, a mask is not of its tile's size or covers no pixel, two images or
            two categories have the same id, or an annotation has the id of an image or category that is not listed.
    """
    names = _by_id(data, "categories", "category", "name")
    tiles = {number: tile_of(review, name) for number, name in _by_id(data, "images", "image", "file_name").items()}
    regions: dict[str, list[ExchangedRegion]] = {}
    for place, row in enumerate(take(data, "annotations", list, "the COCO file"), 1):
        number = take(row, "id", ID, f"annotation number {place} of the file", place)
        where = f"annotation {number}"
        image, category = (str(take(row, key, ID, where)) for key in ("image_id", "category_id"))
        for kind, number, listed in (("image", image, tiles), ("category", category, names)):
            if number not in listed:
                raise ValueError(f"{where} has {kind} {number}, which the file does not list")
        tile = tiles[image]
        if tile is None:
            continue
        mask, exact = _mask(row, review.tiles.labels(tile).shape, where)
        region = take(row, "region", (int, type(None)), where, None)
        regions.setdefault(tile, []).append(ExchangedRegion(mask, names[category], region, exact))
    return regions


def _by_id(data: dict, key: str, kind: str, value: str) -> dict[str, str]:
    """Id, as text -> name of the image or category. Files may write the same id as a number and as text."""
    found: dict[str, str] = {}
    for place, row in enumerate(take(data, key, list, "the COCO file"), 1):
        where = f"{kind} {place} of the file"
        number, name = str(take(row, "id", ID, where)), take(row, value, str, where)
        if found.setdefault(number, name) != name:
            raise ValueError(f"{where}: id {number} stands for {found[number]!r} and for {name!r}: give each its own")
    return found


def _mask(row: dict, size: tuple[int, int], where: str) -> tuple[np.ndarray, bool]:
    """Polygons, run lengths or a box -> bool (H,W), and whether the mask is exact to the pixel (run lengths)."""
    segmentation = take(row, "segmentation", (list, dict, type(None)), where, None)
    try:
        if isinstance(segmentation, dict):
            mask = rle_mask(take(segmentation, "counts", (str, list), "the segmentation"), size)
            if segmentation.get("size", [*size]) != [*size]:
                raise ValueError(
                    f"its mask has the size {segmentation['size']}, and its tile {[*size]} (height, width)"
                )
        elif segmentation and any(segmentation):
            mask = polygons_mask([polygon for polygon in segmentation if polygon != []], size)
        else:
            mask = polygons_mask([_box_corners(row)], size)
        if not mask.any():
            raise ValueError("its mask covers no pixel: draw it again, or remove the annotation")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return mask, isinstance(segmentation, dict)


def _box_corners(row: dict) -> list[float]:
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError("it has neither polygons nor run lengths, nor a box of four numbers: draw it again")
    x, y, width, height = (checked(number, float, "a number of the box") for number in box)
    return [x, y, x + width, y, x + width, y + height, x, y + height]
