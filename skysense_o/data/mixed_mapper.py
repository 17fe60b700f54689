"""Make samples from records with any kind of label. In a sample, each pixel is yes, no or unknown for each class."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import configurable

from skysense_o.data.augment import Augmentation, crop_and_resize
from skysense_o.data.captions import read_record_image
from skysense_o.data.catalog import records_of, spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.concepts import CONCEPTS_FILE, load_concepts
from skysense_o.data.labels import BadData, read_labels
from skysense_o.data.mapper import labelled_sample, read_image_and_labels
from skysense_o.data.partial_labels import (
    WordChooser,
    class_says,
    object_says,
    object_values,
    outside_says,
    shapes_say,
)
from skysense_o.data.prompt_sampler import PromptSampler
from skysense_o.data.weak.mosaic import ragged_cells, random_part
from skysense_o.data.weak.points import point_labels
from skysense_o.data.weak.shapes import shape_boxes, shape_labels
from skysense_o.sample import IGNORE, UNKNOWN, YES, Sample
from skysense_o.text_files import checked, read_json_file, read_json_lines, take

OBJECT_SIDE = (24.0, 128.0)  # smallest and largest side of the chosen object in the crop, in pixels
LARGEST_SCALE = 4.0
SCENES_AT_ONCE = (0.35, 0.25, 0.25, 0.15)  # probabilities of 1, 2, 3, 4 images in a mosaic
POINTS = {"disc": 2.5, "far": 24.0}  # see `point_labels`; tree crowns are about 10 pixels wide at 0.6 m per pixel
POINT_SCALE = (1.0, 2.5)  # smallest and largest scale of images with points
MARKS = {"car": (2.5, 30.0), "boat": (3.0, 40.0), "mobile home": (5.0, 60.0), "building": (7.0, 90.0)}


class MixedMapper:
    """Makes samples from label images, boxes, points, shapes and scene classes. All randomness comes from the global
    generators, which the loader seeds for each sample.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentation: Augmentation,
        words: WordChooser,
        box_masks: str = "",
        captions: int = 0,
        read_captions: bool = True,
        scenes: list[dict] | None = None,
        prompts: PromptSampler | None = None,
    ) -> None:
        """
        Args:
            augmentation: crops and changes image and labels.
            words: chooses the vocabulary, and computes what each label means for it.
            box_masks: output folder of `tools/box_masks.py`.
            captions: number of captions from which the model chooses, per sample of one scene image; 0: none.
            read_captions: captions also tell what is in their image, see `said_of`; False if their captions must
                not be used.
            scenes: all records with a scene class, for mosaics.
            prompts: draws clicks and boxes for label images and boxes; other labels have no objects to click on.
        """
        self.augmentation, self.side, self.words = augmentation, augmentation.side, words
        self.box_masks, self.captions, self.read_captions = box_masks, captions, read_captions
        self.scenes, self.prompts = scenes or [], prompts
        self._pure = [r for r in self.scenes if _scene(r).whole is not None]
        self._outlines: dict[tuple[str, str], np.ndarray] = {}  # data set and file -> labels, drawn once

    @classmethod
    def from_config(cls, cfg) -> dict:
        i = cfg.INPUT
        records = [r for name in cfg.DATASETS.TRAIN for r in records_of(name, cfg.DATALOADER.SKIP_BAD)]
        return {
            "augmentation": Augmentation.from_config(cfg),
            "words": WordChooser(i.SYNONYMS, i.WORDS, i.HYPERNYMS, i.GRAPH, tuple(i.SAMPLING_HYPER)),
            "box_masks": i.BOX_MASKS,
            "captions": i.CAPTIONS if cfg.MODEL.LOSS.CAPTIONS else 0,
            "read_captions": i.CAPTIONS > 0,
            "scenes": [r for r in records if "label" in r],
            "prompts": PromptSampler(i.PROMPTS) if i.PROMPTS else None,
        }

    def __call__(self, record: dict) -> Sample:
        """
        Raises:
            BadData: a file is missing or broken. ValueError: the record has no label.
        """
        extra: dict = {}
        if "sem_seg_file_name" in record:
            image, labels, says, own = self._labelled(record)
        elif "boxes" in record:
            image, labels, says, own = self._boxed(record)
        elif "points" in record:
            image, labels, says, own = self._pointed(record)
        elif "shapes" in record:
            image, labels, says, own = self._outlined(record)
        elif "label" in record:
            image, labels, says, own, extra = self._scenes(record)
        else:
            raise ValueError(
                f"{record['file_name']} has no label image, boxes, points, shapes or scene class, only {sorted(record)}"
            )
        image, labels = self.augmentation.transform(image, labels)
        vocabulary, table, alike = self.words(labels, says, own)
        if alike is not None:
            extra["visual_similarity"] = torch.from_numpy(alike)
        if self.prompts:
            extra["prompts"] = self.prompts(np.where(object_values(record)[labels], labels, IGNORE))
        return {
            **labelled_sample(image, labels, vocabulary, record),
            "says": torch.from_numpy(np.ascontiguousarray(table)),
            **extra,
        }

    def _labelled(self, record: dict):
        image, labels = read_image_and_labels(record)
        return *self.augmentation.crop(image, labels), *class_says(record["dataset"])

    def _boxed(self, record: dict):
        path = Path(self.box_masks) / record["dataset"] / (Path(record["file_name"]).stem + ".png")
        if not path.is_file():
            raise BadData(
                f"{path} is missing: set INPUT.BOX_MASKS to the folder that tools/box_masks.py made, or run"
                f" python tools/box_masks.py {record['dataset']}_train FOLDER"
            )
        image = _kept_image(record["file_name"])
        labels = read_labels(path, image.shape[:2]).astype(np.uint8)
        says, own = object_says(record["dataset"])
        says = says.copy()
        says[-1] = outside_says(record)
        box = object_square(record["boxes"], image.shape[:2], self.side)
        return *crop_and_resize(image, labels, box, self.side), says, own[:0]

    def _pointed(self, record: dict):
        image = _kept_image(record["file_name"])
        count = len(load_classes(spec_of(record["dataset"]).class_table_name))
        disc, far = MARKS.get(record.get("what", ""), (POINTS["disc"], POINTS["far"]))
        labels = point_labels(image.shape[:2], record["points"], count, disc, far)
        crop = Augmentation(self.side, POINT_SCALE).crop(image, labels)
        says, own = object_says(record["dataset"])
        if "kind" in record:  # the image has a scene class, which tells more concepts that it shows or lacks
            concepts, says = load_concepts(), says.copy()
            more = concepts.scene_says(concepts.scenes[record["kind"]], self._said(record))
            more = np.where(more > YES, UNKNOWN, more)  # "somewhere in the image" says nothing about one pixel
            says[count:] = np.where(says[count:] == UNKNOWN, more, says[count:])
        return *crop, says, own[:0]

    def _outlined(self, record: dict):
        image = _kept_image(record["file_name"])
        count, key = (
            len(load_classes(spec_of(record["dataset"]).class_table_name)),
            (record["dataset"], record["file_name"]),
        )
        if key not in self._outlines:
            self._outlines[key] = shape_labels(image.shape[:2], record["shapes"], count)
        labels = self._outlines[key]
        box = object_square(shape_boxes(record["shapes"]), image.shape[:2], self.side)
        says = shapes_say(record, self._said(record))
        return *crop_and_resize(image, labels, box, self.side), says, np.zeros(0, np.int64)

    def _scenes(self, record: dict):
        """One scene image, or a mosaic of up to four scene images. Each image has its own label value."""
        count = 1 + int(np.random.choice(len(SCENES_AT_ONCE), p=SCENES_AT_ONCE))
        chosen = [record]
        while len(chosen) < count:
            pool = self._pure if self._pure and np.random.rand() < 0.6 else self.scenes
            chosen.append(pool[np.random.randint(len(pool))])
        labels = ragged_cells(self.side, count)
        image = np.zeros((self.side, self.side, 3), np.uint8)
        for value, one in enumerate(chosen):
            cell = labels == value
            part = random_part(read_record_image(one), self.side, 0.75 if count == 1 else 0.4)
            cv2.copyTo(part, cell.astype(np.uint8), image)
        says = np.stack([load_concepts().scene_says(_scene(one), self._said(one)) for one in chosen])
        own = np.zeros(0, np.int64)
        extra = {"captions": self._captions(record)} if count == 1 and self.captions else {}
        return image, labels, says, own, extra

    def _said(self, record: dict) -> dict[int, int]:
        return said_of(record) if self.read_captions else {}

    def _captions(self, record: dict) -> tuple[str, ...]:
        """Captions to choose from: first one of the image itself, then captions of images with other scene classes."""
        found = [self._caption(record)]
        for _ in range(4 * self.captions):
            other = self.scenes[np.random.randint(len(self.scenes))]
            if _kind(other) == _kind(record):
                continue
            text = self._caption(other, few=True)
            if text not in found:
                found.append(text)
            if len(found) == self.captions:
                break
        return tuple(found)

    def _caption(self, record: dict, few: bool = False) -> str:
        """Draw a caption for an image. `few`: draw from few texts, so that fewer texts have to be encoded."""
        texts = captions_of(record)
        if texts and np.random.rand() < 0.5 and not few:
            return texts[np.random.randint(len(texts))]
        table = load_classes(spec_of(record["dataset"]).class_table_name)
        words = (table.classes[record["label"]], *table.synonyms[record["label"]])
        return words[np.random.randint(min(len(words), 3 if few else len(words)))]


def object_square(boxes: list, size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a crop around one box, at a scale at which the object has a side in OBJECT_SIDE.

    A class is drawn first, then one of its objects, so that rare classes are as frequent as others. Uses NumPy's
    global generator.
    """
    height, width = size
    if not boxes:
        length = min(height, width, side)
        return np.random.randint(width - length + 1), np.random.randint(height - length + 1), length, length
    kinds = sorted({int(box[4]) for box in boxes})
    kind = kinds[np.random.randint(len(kinds))]
    these = [box for box in boxes if int(box[4]) == kind]
    x0, y0, x1, y1, _ = these[np.random.randint(len(these))]
    longest = max(x1 - x0, y1 - y0, 4.0)
    wanted = np.exp(np.random.uniform(*np.log(OBJECT_SIDE)))
    scale = np.clip(wanted / longest, 0.5, LARGEST_SCALE)
    length = int(min(height, width, max(32, round(side / scale))))
    away = max(0.0, (length - longest) / 2)
    x = (x0 + x1 - length) / 2 + np.random.uniform(-away, away)
    y = (y0 + y1 - length) / 2 + np.random.uniform(-away, away)
    return int(np.clip(x, 0, width - length)), int(np.clip(y, 0, height - length)), length, length


@lru_cache(400)
def _kept_image(path: str) -> np.ndarray:
    """Read an image through a cache. Scene images do not use this cache, because they are small and many."""
    return read_record_image({"file_name": path})


def _kind(record: dict) -> str:
    """The scene class of a record, <table>/<class> as in `concepts.json`."""
    table = spec_of(record["dataset"]).class_table_name
    return f"{table}/{load_classes(table).classes[record['label']]}"


def _scene(record: dict):
    kind, scenes = _kind(record), load_concepts().scenes
    if kind not in scenes:
        raise ValueError(f"{record['file_name']}: {CONCEPTS_FILE.name} has no scene {kind!r}: add one")
    return scenes[kind]


def captions_of(record: dict) -> list[str]:
    """The captions of a record, or if it has none, those of its image in the data set's captions.jsonl."""
    if "captions" in record:
        return record["captions"]
    path = Path(record["file_name"])
    return _listed_captions(spec_of(record["dataset"]).root).get((path.parent.name, path.stem), [])


@lru_cache
def _listed_captions(folder: Path) -> dict[tuple[str, str], list[str]]:
    file = folder / "captions.jsonl"
    if not file.is_file():
        return {}
    said = {}
    for number, entry in read_json_lines(file):
        where = f"{file}, line {number}"
        captions = [checked(one, str, f"{where}: a caption") for one in take(entry, "captions", list, where)]
        image = Path(take(entry, "image", str, where))
        said[image.parent.name, image.stem] = captions
    return said


@lru_cache
def _spoken() -> list[tuple[re.Pattern, int, int]]:
    body = read_json_file(CONCEPTS_FILE)["said"]
    concepts = load_concepts()
    return [
        (re.compile(rf"\b({'|'.join(words)})\b"), concepts.index(name), share) for name, (share, *words) in body.items()
    ]


def said_of(record: dict) -> dict[int, int]:
    """Concept -> least share in percent, for concepts named by two captions, or by the only caption of the image."""
    texts = [text.lower() for text in captions_of(record)]
    least = min(2, len(texts))
    said = {}
    for pattern, concept, share in _spoken() if texts else ():
        if sum(bool(pattern.search(text)) for text in texts) >= least:
            said[concept] = share
    return said
