"""From a record to a Sample: read, turn stored labels into ids, augment, choose words. One mapper for every row."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from detectron2.config import configurable

from skysense_o.data.augment import crop_and_resize, random_square, random_transforms
from skysense_o.data.catalog import spec_of
from skysense_o.data.classes import ClassTable, load_classes, load_distractors
from skysense_o.data.labels import BadData, id_table, load_image, read_labels, to_ids
from skysense_o.data.prompt_sampler import PromptSampler
from skysense_o.data.relation_graph import load_graph
from skysense_o.data.text_sampler import TextSampler
from skysense_o.sample import IGNORE, Sample
from skysense_o.vocabulary import Vocabulary

KEPT_BYTES = 512 * 2**20
"""Decoded images that each loader process keeps: decoding a large JPEG costs more than all that follows."""

_kept: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
_kept_bytes = 0


def read_image_and_labels(record: dict) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (H,W,3) RGB and ids, uint8 (H,W): 0..C-1 or IGNORE; kept while there is room.

    Pixels without data (declared nodata, alpha 0) have the mean colour, and IGNORE for their label.

    Raises:
        BadData: a file that is missing, cut short, coloured labels, sizes that differ, ids that mean nothing.
    """
    global _kept_bytes
    key = record["file_name"], record["sem_seg_file_name"]
    if key in _kept:
        return _kept[key]
    read = load_image(key[0])
    image, stored = read.filled(), read_labels(key[1], read.size, read.record.orientation)
    if "names" in record:
        count = len(record.get("ids", record["names"]))
        labels = to_ids(stored, id_table(count), count, key[1])
        if "ids" in record:  # repeated names were merged
            again = np.full(256, IGNORE, np.uint8)
            again[:count] = record["ids"]
            labels = again[labels]
    else:
        table = load_classes(spec_of(record["dataset"]).class_table_name)
        labels = to_ids(stored, _table_of(record["dataset"]), len(table), key[1])
    if read.valid is not None:
        labels = np.where(read.valid, labels, IGNORE).astype(np.uint8)
    size = image.nbytes + labels.nbytes
    if _kept_bytes + size <= KEPT_BYTES:
        _kept_bytes += size
        _kept[key] = image, labels
    return image, labels


@lru_cache
def _table_of(key: str) -> np.ndarray:
    spec = spec_of(key)
    return id_table(len(load_classes(spec.class_table_name)), spec.ignore, spec.offset)


class TrainingMapper:
    """Random scale, crop, flip, quarter turn and colour; words from a `TextSampler`.

    All randomness comes from the global generators, which the loader seeds for each sample. A record carries only its
    row's key (and, in Sky-SA, its own names): no vocabulary is copied.
    """

    @configurable
    def __init__(
        self,
        *,
        crop: int,
        scale: tuple[float, float],
        turn: bool,
        color: float,
        max_area: float,
        words: TextSampler,
        prompts: PromptSampler | None = None,
        visual_similarity: bool = False,
    ) -> None:
        """visual_similarity: samples carry what the relation graph says of their names, for the vision-centric loss."""
        self.crop, self.scale, self.turn, self.color, self.words = crop, scale, turn, color, words
        self.max_area, self.prompts, self.visual_similarity = max_area, prompts, visual_similarity

    @classmethod
    def from_config(cls, cfg) -> dict:
        i = cfg.INPUT
        needs_pool = i.DISTRACTORS or i.TEXT_BATCH
        return {
            "crop": i.CROP_SIZE,
            "scale": tuple(i.SCALE_RANGE),
            "turn": i.TURN,
            "color": i.COLOR_JITTER,
            "max_area": i.SINGLE_CATEGORY_MAX_AREA,
            "words": TextSampler(
                i.SYNONYMS,
                load_distractors(i.DISTRACTOR_FILE) if needs_pool else (),
                i.DISTRACTORS,
                i.TEXT_BATCH,
                i.GRAPH,
                tuple(i.SAMPLING_HYPER),
            ),
            "prompts": PromptSampler(i.PROMPTS) if i.PROMPTS else None,
            "visual_similarity": bool(cfg.MODEL.LOSS.VISION_CENTRIC or cfg.MODEL.LOSS.VISION_CENTRIC_PUBLISHED),
        }

    def __call__(self, record: dict) -> Sample:
        image, labels = read_image_and_labels(record)
        box = random_square(labels, self.crop, self.scale, self.max_area)
        image, labels = crop_and_resize(image, labels, box, self.crop)
        for transform in random_transforms(self.crop, self.turn, self.color):
            image, labels = transform.apply_image(image), transform.apply_segmentation(labels)
        graph = record.get("graph") or self.words.graph
        vocabulary, kept = self.words(classes_of_record(record), graph)
        if kept is not None:
            places = np.full(256, IGNORE, np.uint8)
            places[kept] = np.arange(len(kept))
            labels = places[labels]
        sample: Sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "sem_seg": torch.from_numpy(labels.astype(np.int64)),
            "vocabulary": vocabulary,
            "file_name": record["file_name"],
        }
        if self.visual_similarity and graph:
            sample["visual_similarity"] = torch.from_numpy(load_graph(graph).between(vocabulary.classes))
        if self.prompts:
            sample["prompts"] = self.prompts(labels)
        return sample


def classes_of_record(record: dict) -> ClassTable | tuple[str, ...]:
    """The classes that a record's ids stand for."""
    return record["names"] if "names" in record else load_classes(spec_of(record["dataset"]).class_table_name)


def evaluation_sample(record: dict, vocabulary: Vocabulary) -> Sample:
    """The whole image, as it is, with its labels and the words that the evaluation asks for."""
    image, labels = read_image_and_labels(record)
    if int(labels[labels != IGNORE].max(initial=0)) >= len(vocabulary):
        raise BadData(f"{record['sem_seg_file_name']} holds more classes than the {len(vocabulary)} names asked for")
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "sem_seg": torch.from_numpy(labels.astype(np.int64)),
        "vocabulary": vocabulary,
        "file_name": record["file_name"],
    }
