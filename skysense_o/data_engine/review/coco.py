"""Export and import of regions as a COCO annotation file, which many annotation programs read and write."""

from __future__ import annotations

from skysense_o.clicks import box_from_mask
from skysense_o.data_engine.review.exchange import ExchangedRegion, exchanged_regions, tile_of
from skysense_o.data_engine.review.masks import polygons_mask, rle_mask, rle_of
from skysense_o.data_engine.review.session import Review


def to_coco(review: Review, reviewer: str | None = None) -> dict:
    """Export all regions: one COCO annotation per region, with an additional key `region`, its number.

    Args:
        review: the review.
        reviewer: export this reviewer's regions; None for the regions as proposed.
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

    Args:
        review: the review.
        data: the file's content.

    Returns:
        tile -> its annotations. Images that are not tiles of this review, and those without annotations, are left out.

    Raises:
        ValueError: a mask has not its tile's size, or an annotation has a category that the file does not list.
    """
    names = {row["id"]: row["name"] for row in data["categories"]}
    tiles = {row["id"]: tile_of(review, row["file_name"]) for row in data["images"]}
    regions: dict[str, list[ExchangedRegion]] = {}
    for row in data["annotations"]:
        tile = tiles.get(row["image_id"])
        if tile is None:
            continue
        if row["category_id"] not in names:
            raise ValueError(f"annotation {row['id']} has category {row['category_id']}, which the file does not list")
        size = review.tiles.labels(tile).shape
        mask, exact = _mask(row["segmentation"], size, row["id"])
        regions.setdefault(tile, []).append(ExchangedRegion(mask, names[row["category_id"]], row.get("region"), exact))
    return regions


def _mask(segmentation, size: tuple[int, int], number: int):
    """Polygons or run lengths -> bool (H,W), and whether the mask is exact to the pixel (run lengths)."""
    if isinstance(segmentation, list):
        return polygons_mask(segmentation, size), False
    try:
        return rle_mask(segmentation["counts"], size), True
    except ValueError as error:
        raise ValueError(f"annotation {number}: {error}") from error
