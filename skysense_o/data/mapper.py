"""Make samples from records with label images: read, convert label values to class ids, augment, choose words."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from cachetools import cached
from detectron2.config import configurable

from skysense_o.byte_cache import byte_cache
from skysense_o.data.augment import Augmentation
from skysense_o.data.catalog import spec_of
from skysense_o.data.classes import ClassTable, load_classes, load_distractors
from skysense_o.data.labels import BadData, id_table, load_image, read_labels, to_ids
from skysense_o.data.prompt_sampler import PromptSampler
from skysense_o.data.relation_graph import load_graph
from skysense_o.data.text_sampler import TextSampler
from skysense_o.sample import IGNORE, Sample
from skysense_o.vocabulary import Vocabulary

KEPT_BYTES = 512 * 2**20
"""Largest cache of decoded images per loader process. Decoding a large JPEG takes longer than all that follows."""


@cached(byte_cache(KEPT_BYTES), key=lambda record: (record["file_name"], record["sem_seg_file_name"]), lock=Lock())
def read_image_and_labels(record: dict) -> tuple[np.ndarray, np.ndarray]:
    """Read the image and the class ids of a record. The returned arrays are cached, so do not change them.

    Args:
        record: a record of `records_of` with `sem_seg_file_name`.

    Returns:
        RGB, uint8 (H,W,3), and class ids, uint8 (H,W): 0..C-1 or IGNORE. Pixels without data (declared nodata, alpha 0)
        have the fill colour `FILL` (ImageNet's mean) and the id IGNORE.

    Raises:
        BadData: a file is missing or damaged, the label image has colours or not the size of the image, or some label
            values have no meaning.
    """
    label_path = record["sem_seg_file_name"]
    read = load_image(record["file_name"])
    image, stored = read.filled(), read_labels(label_path, read.size, read.record.orientation)
    if "names" in record:
        count = len(record.get("ids", record["names"]))
        labels = to_ids(stored, id_table(count), count, label_path)
        if "ids" in record:  # some of the image's names were equal and were merged, see `merge_duplicate_names`
            merged = np.full(256, IGNORE, np.uint8)
            merged[:count] = record["ids"]
            labels = merged[labels]
    else:
        table = load_classes(spec_of(record["dataset"]).class_table_name)
        labels = to_ids(stored, _table_of(record["dataset"]), len(table), label_path)
    if read.valid is not None:
        labels = np.where(read.valid, labels, IGNORE).astype(np.uint8)
    return image, labels


@lru_cache
def _table_of(key: str) -> np.ndarray:
    spec = spec_of(key)
    return id_table(len(load_classes(spec.class_table_name)), spec.ignore, spec.offset)


class TrainingMapper:
    """Makes training samples: augments image and labels at random, and lets a `TextSampler` choose the words.

    All randomness comes from the global generators, which the loader seeds for each sample.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentation: Augmentation,
        words: TextSampler,
        prompts: PromptSampler | None = None,
        visual_similarity: bool = False,
    ) -> None:
        """
        Args:
            augmentation: crops and changes image and labels.
            words: chooses the vocabulary.
            prompts: draws clicks and boxes; None: samples have no prompts.
            visual_similarity: add the classes' scores in the relation graph to samples, for the vision-centric loss.
        """
        self.augmentation, self.words = augmentation, words
        self.prompts, self.visual_similarity = prompts, visual_similarity

    @classmethod
    def from_config(cls, cfg) -> dict:
        i = cfg.INPUT
        needs_pool = i.DISTRACTORS or i.TEXT_BATCH
        return {
            "augmentation": Augmentation.from_config(cfg),
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
        """Make a sample of (side, side) pixels.

        Raises:
            BadData: the image or its labels cannot be used.
        """
        image, labels = self.augmentation.transform(*self.augmentation.crop(*read_image_and_labels(record)))
        graph = record.get("graph") or self.words.graph
        vocabulary, kept = self.words(classes_of_record(record), graph)
        if kept is not None:
            index_of = np.full(256, IGNORE, np.uint8)
            index_of[kept] = np.arange(len(kept))
            labels = index_of[labels]
        sample = labelled_sample(image, labels, vocabulary, record)
        if self.visual_similarity and graph:
            sample["visual_similarity"] = torch.from_numpy(load_graph(graph).between(vocabulary.classes))
        if self.prompts:
            sample["prompts"] = self.prompts(labels)
        return sample


def classes_of_record(record: dict) -> ClassTable | tuple[str, ...]:
    """The classes of a record's ids: the record's own names, or the class table of its data set."""
    return record["names"] if "names" in record else load_classes(spec_of(record["dataset"]).class_table_name)


def labelled_sample(image: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary, record: dict) -> Sample:
    """Make a sample from an image, uint8 (H,W,3), and its labels, uint8 (H,W)."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "sem_seg": torch.from_numpy(labels.astype(np.int64)),
        "vocabulary": vocabulary,
        "file_name": record["file_name"],
    }


def evaluation_sample(record: dict, vocabulary: Vocabulary) -> Sample:
    """Make a sample from the whole image, unchanged.

    Args:
        record: a record of `records_of` with `sem_seg_file_name`.
        vocabulary: classes in the order of the ids.

    Raises:
        BadData: the image or its labels cannot be used, or have more classes than the vocabulary.
    """
    image, labels = read_image_and_labels(record)
    if int(labels[labels != IGNORE].max(initial=0)) >= len(vocabulary):
        raise BadData(f"{record['sem_seg_file_name']} holds more classes than the {len(vocabulary)} of the vocabulary")
    return labelled_sample(image, labels, vocabulary, record)
