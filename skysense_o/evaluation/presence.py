"""Validation images in which it is known whether a word is there, and what the model says about it.

Image crops of label images, as whole images contain nearly all classes; and images with boxes. A word is present if it
covers LEAST_SHARE of the crop, or has a box.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from skysense_o.data.captions import read_record_image
from skysense_o.data.catalog import records_of, spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.mapper import read_image_and_labels
from skysense_o.data.weak.shapes import shape_labels
from skysense_o.evaluation.words import AEROPLANES, UNBOXED, unboxed
from skysense_o.modeling import Queries
from skysense_o.presence import LEAST_SHARE, mask_scores
from skysense_o.sample import IGNORE
from skysense_o.vocabulary import Vocabulary

MOST_UNKNOWN = 0.1
"""Crops of which a larger share has no label are left out."""


@dataclass(frozen=True)
class PresenceSource:
    """A validation set: the side of its crops in pixels, and what in a file's name tells its scene.

    Images of a scene show the same place, so they must not be on both sides of a cross-fit.
    """

    data_set: str
    side: int
    scene: str


SOURCES = (
    PresenceSource("dubai_val", 512, r"tile\d+"),
    PresenceSource("czech_landcover_val", 512, r"tile\d+"),
    PresenceSource("epfl_roads_val", 200, r"satImage_\d+"),
    PresenceSource("oam_buildings_val", 256, r"OAM-\d{5}"),  # the first digits of the tile's column
    PresenceSource("simd_val", 0, r".*"),  # whole images, because boxes at the edges of crops would be cut
)


class PresenceCase(NamedTuple):
    """One word asked of one image."""

    data_set: str
    word: str
    first_half: bool  # of the data set's scenes
    present: bool
    own: float  # the decoder's presence logit
    mask: float  # see `mask_scores`


def presence_cases(
    model: nn.Module,
    source: PresenceSource,
    limit: int = 0,
    progress: Callable[[list[dict]], Iterable[dict]] = iter,
) -> list[PresenceCase]:
    """Ask a model for the words of a data set in each of its images.

    Args:
        model: a SkySenseO whose decoder gives presence scores.
        source: the data set.
        limit: number of images, evenly spread; 0: all.
        progress: wraps the list of records, to show a progress bar.

    Raises:
        FileNotFoundError: the data set is not installed. ValueError: the decoder gives no presence scores.
    """
    records = records_of(source.data_set)
    if 0 < limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).round().astype(int)]
    scenes = [re.search(source.scene, Path(record["file_name"]).stem)[0] for record in records]
    in_order = sorted(set(scenes))
    first = set(in_order[: len(in_order) // 2])
    scene_of = {record["file_name"]: scene for record, scene in zip(records, scenes)}
    outlines = unboxed() if source.side == 0 else {}
    cases = []
    for record in progress(records):
        known = _known_of_labels(record, source.side) if source.side else _known_of_boxes(record, outlines)
        for image, present in known:
            half = scene_of[record["file_name"]] in first
            for (word, there), own, mask in zip(present.items(), *_ask(model, image, list(present))):
                cases.append(PresenceCase(source.data_set, word, half, there, own, mask))
    return cases


def crops(size: tuple[int, int], side: int) -> list[tuple[slice, slice]]:
    """Cut an image (H,W) into equal crops whose sides are as close to `side` as possible.

    >>> crops((100, 60), 50)
    [(slice(0, 50, None), slice(0, 60, None)), (slice(50, 100, None), slice(0, 60, None))]
    """
    edges = [np.linspace(0, n, max(1, round(n / side)) + 1).round().astype(int).tolist() for n in size]
    down, across = ([slice(a, b) for a, b in pairwise(each)] for each in edges)
    return [(y, x) for y in down for x in across]


def _known_of_labels(record: dict, side: int) -> Iterator[tuple[np.ndarray, dict[str, bool]]]:
    """Crops of an image with a label image, and for each class whether it is in the crop."""
    image, labels = read_image_and_labels(record)
    table = load_classes(spec_of(record["dataset"]).class_table_name)
    for y, x in crops(labels.shape, side):
        known = labels[y, x][labels[y, x] != IGNORE]
        if known.size < (1 - MOST_UNKNOWN) * labels[y, x].size:
            continue
        shares = np.bincount(known, minlength=len(table)) / known.size
        yield (
            image[y, x],
            {
                word: bool(share >= LEAST_SHARE)
                for word, share, rest in zip(table.classes, shares, table.background)
                if not rest
            },
        )


def _known_of_boxes(record: dict, outlines: dict[str, dict]) -> Iterator[tuple[np.ndarray, dict[str, bool]]]:
    """An image of SIMD: all its aeroplanes have boxes; its cars and boats only where the others are outlined."""
    image = read_record_image(record)
    folders = load_classes(spec_of(record["dataset"]).class_table_name).folders
    boxed = {folders[int(box[4])] for box in record["boxes"]}
    present = {"airplane": not boxed.isdisjoint(AEROPLANES)}
    more = outlines.get(record["file_name"])
    if more:
        table = load_classes(spec_of(more["dataset"]).class_table_name).classes
        labels = shape_labels(image.shape[:2], more["shapes"], len(table))
        for word, kinds in UNBOXED.items():
            if table.index(word) in more["complete"]:
                present[word] = not boxed.isdisjoint(kinds) or bool((labels == table.index(word)).any())
    yield image, present


@torch.inference_mode()
def _ask(model: nn.Module, image: np.ndarray, words: Sequence[str]) -> tuple[list[float], list[float]]:
    """The decoder's presence logits and the `mask_scores` of words in an image, uint8 (H,W,3)."""
    embedding, _, (transform,) = model.embed_images([torch.from_numpy(image.transpose(2, 0, 1).copy())])
    text, valid = model.text_bank(model.tower, [Vocabulary.of(list(words))], model.templates)
    logits, own, _ = model.sem_seg_head.decode(embedding, Queries(text, valid))
    if own is None:
        raise ValueError(f"{type(model.sem_seg_head).__name__} gives no presence scores: there is nothing to calibrate")
    return own[0].tolist(), mask_scores(logits[0], transform).tolist()
