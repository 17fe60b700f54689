"""Evaluation with everyday words on weakly labelled data sets. Each `ask_*` returns data set -> metric -> 0..1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from skysense_o.data.captions import read_record_image
from skysense_o.data.catalog import records_of, spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.mapper import read_image_and_labels
from skysense_o.data.training_facts import stated_metres
from skysense_o.data.weak.shapes import shape_labels
from skysense_o.evaluation.coverage import BoxCounts, count_boxes, coverage
from skysense_o.inference.pixel_size import reduced, reduction
from skysense_o.sample import IGNORE
from skysense_o.vocabulary import Vocabulary

ROADS = ("road", "building", "tree", "grass", "bare land", "parking lot", "water")
ROOFS = ("building", "road", "tree", "grass", "bare land", "water", "car")
AIRFIELD = (
    "airplane",
    "boat",
    "car",
    "truck",
    "building",
    "road",
    "runway",
    "grass",
    "tree",
    "bare land",
    "water",
    "pavement",
)
HARBOUR = ("ship", "boat", "building", "road", "tree", "grass", "bare land", "water", "pavement")
FOREST = ("tree", "grass", "road", "bare land", "building", "water")
UNBOXED = {"boat": ("boat",), "car": ("car", "van")}
"""Words with outlines in `simd_unboxed` -> classes of SIMD whose boxes belong to the word."""
AEROPLANES = ("airliner", "propeller", "trainer", "chartered", "fighter")
DRONE = {"paved area": (0,), "grass": (2,), "tree|vegetation": (7, 18), "roof": (8,), "water": (4, 6), "car": (16,)}
LAND = {"vegetation": (0,), "land": (1,), "paved area": (2,), "building": (3,), "unpaved road": (5,)}
KINDS = {
    "airplane": ("airplane",),
    "boat": ("harbor",),
    "car": ("parking lot", "freeway", "intersection", "mobile home park", "dense residential", "medium residential",
            "overpass", "tennis court", "sparse residential", "buildings", "storage tanks", "airplane",
            "baseball diamond"),
    "tennis court": ("tennis court",),
    "storage tank": ("storage tanks",),
    "runway": ("runway",),
    "river": ("river",),
    "sea": ("beach",),
    "crop field": ("agricultural",),
    "forest": ("forest",),
    "house": ("dense residential", "medium residential", "sparse residential", "mobile home park", "tennis court",
              "intersection", "buildings"),
    "golf bunker": ("golf course",),
}  # fmt: skip
BESIDE = ("road", "parking lot", "grass", "tree", "bare land", "building", "shrub")


class Asker:
    """Segments images with words. It holds the model, the number of images of each data set to use (0: all), and the
    smallest and largest metres per pixel of the model's training.
    """

    def __init__(self, model: nn.Module, limit: int = 0, known_gsd: Sequence[float] = ()) -> None:
        self.model, self.limit, self.known_gsd = model, limit, known_gsd

    def records(self, name: str) -> list[dict]:
        """All records of a data set, or `limit` of them, evenly spread."""
        records = records_of(name)
        if not self.limit or self.limit >= len(records):
            return records
        return [records[i] for i in np.linspace(0, len(records) - 1, self.limit).round().astype(int)]

    def __call__(self, image: np.ndarray, words: Sequence[str], pixel_size: float | None = None) -> np.ndarray:
        """Segment an image with words.

        Args:
            image: uint8 (H,W,3).
            words: the words; bars separate synonyms, as in "tree|vegetation".
            pixel_size: metres per pixel, see `Predictor`.

        Returns:
            (H,W), the index of the word that each pixel gets.
        """
        vocabulary = Vocabulary.of([tuple(word.split("|")) for word in words])
        small = reduced(image, reduction(pixel_size, self.known_gsd))
        sample = {"image": torch.from_numpy(small.transpose(2, 0, 1).copy()), "vocabulary": vocabulary}
        sample |= {"height": image.shape[0], "width": image.shape[1]}
        return self.model.predict([sample], "labels")[0]["labels"].cpu().numpy()


Numbers = dict[str, dict[str, float]]


def ask_roads(ask: Asker) -> Numbers:
    """Compute the IoU of "road" on epfl_roads_val."""
    return {"epfl_roads_val": {"IoU of road": _iou_of_class_1(ask, "epfl_roads_val", ROADS)}}


def ask_buildings(ask: Asker) -> Numbers:
    """Compute the IoU of "building" on oam_buildings_val."""
    return {"oam_buildings_val": {"IoU of building": _iou_of_class_1(ask, "oam_buildings_val", ROOFS)}}


def ask_land(ask: Asker) -> Numbers:
    """Compute the mIoU of five words on czech_landcover_val; water is left out, because these images have none."""
    return {"czech_landcover_val": _mean_iou(ask, "czech_landcover_val", LAND)}


def ask_drone(ask: Asker) -> Numbers:
    """Compute the mIoU of six words on semantic_drone_test, which no training used; other classes are ignored.

    Pixels of these images are 1 to 2 cm wide. The images are reduced to the finest pixel size of training, see
    `reduction`.
    """
    return {"semantic_drone_test": _mean_iou(ask, "semantic_drone_test", DRONE)}


def ask_objects(ask: Asker) -> Numbers:
    """Compute, for boxed objects, the share of boxes that are hit and the share of the word's pixels inside boxes.

    In SIMD many cars and boats have no box. `simd_unboxed` outlines these in some of its images; in these images, the
    share of the pixels inside boxes and outlines is computed as well.
    """
    found: Numbers = {}
    outlines = unboxed()
    for name, words, meant in (
        ("simd_val", AIRFIELD, {"airplane": AEROPLANES, "boat": ("boat",), "car": ("car",)}),
        ("harbor_ships_test", HARBOUR, {"ship": ("ship",)}),
        ("neon_crowns_val", FOREST, {"tree": ("tree",)}),
    ):
        counts = {word: BoxCounts() for word in meant}
        everything = {word: BoxCounts() for word in UNBOXED if word in meant}
        for record in ask.records(name):
            labels = ask(read_record_image(record), words)
            folders = load_classes(spec_of(record["dataset"]).class_table_name).folders
            for word, these in meant.items():
                boxes = [box[:4] for box in record["boxes"] if folders[int(box[4])] in these]
                mask, record_outlines = labels == words.index(word), outlines.get(record["file_name"])
                if boxes:
                    count_boxes(counts[word], mask, boxes)
                if word in everything and record_outlines:
                    _count_everything(everything[word], mask, word, record, record_outlines)
        found[name] = {
            f"{word} {what}": share
            for word, c in counts.items()
            for what, share in (("hit", c.hit_share), ("inside", c.inside_share))
        }
        found[name] |= {f"{word} inside, all marked": c.inside_share for word, c in everything.items() if c.pixels}
    return found


def unboxed() -> dict[str, dict]:
    """Image file -> its record of `simd_unboxed_val`; empty where these images are not installed."""
    try:
        return {record["file_name"]: record for record in records_of("simd_unboxed_val")}
    except FileNotFoundError:
        return {}


def _count_everything(counts: BoxCounts, mask: np.ndarray, word: str, record: dict, outlines: dict) -> None:
    """Add an image to `counts` if all of its objects of the word have a box or an outline.

    Args:
        mask: bool (H,W), the word's pixels.
        record: with the image's boxes. outlines: the image's record of `simd_unboxed_val`.
    """
    table = load_classes(spec_of(outlines["dataset"]).class_table_name).classes
    label, folders = table.index(word), load_classes(spec_of(record["dataset"]).class_table_name).folders
    if label not in outlines["complete"]:
        return
    labels = shape_labels(mask.shape, outlines["shapes"], len(table))
    boxes = [box[:4] for box in record["boxes"] if folders[int(box[4])] in UNBOXED[word]]
    count_boxes(counts, mask & (labels != IGNORE), boxes, labels == label)


def ask_coverage(ask: Asker) -> Numbers:
    """Test on UC Merced's test images whether each of twelve words is found in its scene classes and not in others."""
    words, records = (*KINDS, *BESIDE), ask.records("ucmerced_test")
    table, shares = load_classes("ucmerced"), []
    for record in records:
        counts = np.bincount(ask(read_record_image(record), words).ravel(), minlength=len(words))
        shares.append(counts / counts.sum())
    found = coverage(np.stack(shares), [table.classes[r["label"]] for r in records], words, KINDS)
    numbers = {"words that find their own": sum(good for _, _, good in found.values()) / len(found)}
    for word, (here, there, _) in found.items():
        numbers |= {f"{word} in its own": here, f"{word} in others": there}
    return {"ucmerced_test": numbers}


def _iou_of_class_1(ask: Asker, name: str, words: Sequence[str]) -> float:
    """IoU of the first word with class 1, for a data set whose label 0 stands for everything else."""
    both = either = 0
    for record in ask.records(name):
        image, labels = read_image_and_labels(record)
        found, known = ask(image, words) == 0, labels != IGNORE
        both += int((found & (labels == 1) & known).sum())
        either += int(((found | (labels == 1)) & known).sum())
    return both / max(1, either)


def _mean_iou(ask: Asker, name: str, classes: dict[str, tuple[int, ...]]) -> dict[str, float]:
    """IoU of each word, and the mean IoU. classes: word -> its label values; pixels with other values are ignored."""
    words = tuple(classes)
    both, either = np.zeros(len(classes)), np.zeros(len(classes))
    for record in ask.records(name):
        image, labels = read_image_and_labels(record)
        stated = stated_metres(spec_of(record["dataset"]).gsd)
        found = ask(image, words, sum(stated) / len(stated) if stated else None)
        known = np.isin(labels, [c for these in classes.values() for c in these])
        for k, these in enumerate(classes.values()):
            mine, meant = (found == k) & known, np.isin(labels, these)
            both[k] += (mine & meant).sum()
            either[k] += (mine | meant).sum()
    ious = both / np.maximum(1, either)
    return {
        "mIoU": float(ious.mean()),
        **{f"IoU of {word.split('|')[0]}": float(iou) for word, iou in zip(classes, ious)},
    }


TESTS: dict[str, Callable[[Asker], Numbers]] = {
    "roads": ask_roads,
    "buildings": ask_buildings,
    "land": ask_land,
    "drone": ask_drone,
    "objects": ask_objects,
    "coverage": ask_coverage,
}
