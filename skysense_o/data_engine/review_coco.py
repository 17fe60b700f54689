"""Regions to and from COCO's annotation file, which many annotation programs read and write."""

from __future__ import annotations

from pycocotools import mask as coco_mask

from skysense_o.data_engine.review import Review
from skysense_o.data_engine.review_exchange import Annotation, annotations, polygons_mask, rle_of, tile_of


def to_coco(review: Review, reviewer: str | None = None) -> dict:
    """One annotation a region, with COCO's keys and `region`, its number here."""
    images, rows, names = [], [], set()
    for k, tile in enumerate(review.tiles, 1):
        height, width = review.tiles.labels(tile).shape
        images.append({"id": k, "file_name": f"tiles/{tile}.png", "height": height, "width": width})
        rows += [(k, one) for one in annotations(review, tile, reviewer) if one.mask.any()]
    names = sorted({one.name for _, one in rows})
    ids = {name: k for k, name in enumerate(names, 1)}
    return {
        "images": images,
        "categories": [{"id": k, "name": name} for name, k in ids.items()],
        "annotations": [_row(k, image, one, ids[one.name]) for k, (image, one) in enumerate(rows, 1)],
    }


def _row(number: int, image: int, one: Annotation, category: int) -> dict:
    rle = rle_of(one.mask)
    packed = {**rle, "counts": rle["counts"].encode()}
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": rle,
        "area": int(coco_mask.area(packed)),
        "bbox": coco_mask.toBbox(packed).tolist(),
        "iscrowd": 0,
        "region": one.region,
    }


def from_coco(review: Review, data: dict) -> dict[str, list[Annotation]]:
    """tile -> its annotations; pictures that are no tiles of ours, and those without annotations, are left out.

    Raises:
        ValueError: an annotation of a size that its tile does not have, or of an unknown category.
    """
    names = {row["id"]: row["name"] for row in data["categories"]}
    tiles = {row["id"]: tile_of(review, row["file_name"]) for row in data["images"]}
    found: dict[str, list[Annotation]] = {}
    for row in data["annotations"]:
        tile = tiles.get(row["image_id"])
        if tile is None:
            continue
        if row["category_id"] not in names:
            raise ValueError(f"annotation {row['id']} has category {row['category_id']}, which the file does not list")
        size = review.tiles.labels(tile).shape
        mask, exact = _mask(row["segmentation"], size, row["id"])
        found.setdefault(tile, []).append(Annotation(mask, names[row["category_id"]], row.get("region"), exact))
    return found


def _mask(segmentation, size: tuple[int, int], number: int):
    """Polygons, run lengths or packed run lengths -> bool (H,W), and whether every pixel is as it was drawn."""
    if isinstance(segmentation, list):
        return polygons_mask(segmentation, size), False
    if tuple(segmentation["size"]) != tuple(size):
        raise ValueError(f"annotation {number} is of {segmentation['size']} pixels, its tile of {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        packed = coco_mask.frPyObjects(segmentation, *size)
    else:
        packed = {"size": list(size), "counts": counts.encode()}
    return coco_mask.decode(packed).astype(bool), True
