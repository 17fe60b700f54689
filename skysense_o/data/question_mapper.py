"""From a record with a question to a Sample.

The image stays as it is, since what is left and what is right must stay. Only where marked objects are given
(INPUT.POINTS), for training that counts, is it turned for a question of how many: their number stays.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from skysense_o.data.augment import QuarterTurn
from skysense_o.data.captions import read_record_image
from skysense_o.data.classes import CLASSES_FOLDER
from skysense_o.data.mapper import KEPT_BYTES
from skysense_o.sample import Sample
from skysense_o.vocabulary import Vocabulary

POINTS_FOLDER = CLASSES_FOLDER.parent / "points"
OTHERS = 1 / 3
"""How often a marked kind that was not asked for takes the place of one that was; of what is not marked, half."""


class QuestionMapper:
    """An image is the same each time, or one of its four turns, so what a frozen tower sees of it can be kept."""

    def __init__(self, cfg) -> None:
        """
        Raises:
            FileNotFoundError, ValueError: INPUT.POINTS names no file, or one with a line that is no marked image.
        """
        self._points = read_points(cfg.INPUT.POINTS) if cfg.INPUT.POINTS else {}
        self._kept: dict[str, np.ndarray] = {}  # several questions are about one image: decoding costs most of all
        self._bytes = 0

    def _read(self, record: dict) -> np.ndarray:
        key = f"{record['file_name']} {record.get('at')}"
        if key not in self._kept:
            image = read_record_image(record)
            if self._bytes + image.nbytes > KEPT_BYTES:
                return image
            self._kept[key], self._bytes = image, self._bytes + image.nbytes
        return self._kept[key]

    def __call__(self, record: dict) -> Sample:
        """An image with marks of other kinds than the question's is asked for those instead now and then."""
        image, points, file = self._read(record), None, record["file_name"]
        question, answer = record["question"], record["answer"]
        if self._points and asks_how_many(question):
            marked = self._points.get(image_key(file), {})
            what = next((kind for kind in marked if f"many {kind}" in question.lower()), None)
            others = [kind for kind in marked if kind != what]
            if others and np.random.rand() < (OTHERS if what else 0.5):
                what = others[np.random.randint(len(others))]
                question, answer = f"How many {what}s in the image?", str(len(marked[what]))
            if what is not None:
                points = np.array(marked[what], np.float32).reshape(-1, 2)
                if len(points) and (points.min() < 0 or (points.max(0) > image.shape[1::-1]).any()):
                    raise ValueError(
                        f"INPUT.POINTS has marks up to {points.max(0).tolist()} in {file}, which is {image.shape[1]} x"
                        f" {image.shape[0]}: give them in its own pixels"
                    )
            turn = QuarterTurn(np.random.randint(4), *image.shape[:2])
            image, file = turn.apply_image(image), f"{file} turned {turn.times}"
            if points is not None:
                points = turn.apply_coords(points) / image.shape[1::-1]
        sample: Sample = {
            "image": torch.from_numpy(image.copy()).permute(2, 0, 1),
            "vocabulary": Vocabulary((question,), ((question,),), (False,)),
            "question": question,
            "answer": answer,
            "file_name": file,
        }
        if points is not None:
            sample["points"] = torch.from_numpy(points).float()
        return sample


def read_points(file: str) -> dict[str, dict[str, list[list[float]]]]:
    """`datasets/points/<file>`, or a file by its full path -> image -> what -> points.

    JSON lines {"image", "what", "points": [[x, y], ...]}, in pixels.

    An image is told by its folder and stem, since the same ones come as TIFF and as JPEG.
    """
    path = POINTS_FOLDER / file
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in POINTS_FOLDER.glob("*.jsonl")))
        raise FileNotFoundError(
            f"INPUT.POINTS {file!r} is not in datasets/points, which has {there}; or give a full path"
        )
    marked: dict[str, dict[str, list[list[float]]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            marked.setdefault(image_key(entry["image"]), {})[entry["what"]] = [
                [float(x), float(y)] for x, y in entry["points"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: {line[:60]!r} is not {{"image": ..., "what": ..., "points": [[x, y], ...]}}'
            ) from error
    return marked


def asks_how_many(question: str) -> bool:
    return "how many" in question.lower()


def image_key(path: str) -> str:
    """Folder and stem."""
    return "/".join(Path(path).with_suffix("").parts[-2:])
