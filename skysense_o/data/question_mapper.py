"""Make samples from records with questions.

Images are not augmented, because questions ask about left and right. The exception is training with annotated objects
(INPUT.POINTS): images of "how many" questions are rotated by multiples of 90 degrees, which does not change the answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from cachetools import cached

from skysense_o.byte_cache import byte_cache
from skysense_o.data.augment import QuarterTurn
from skysense_o.data.captions import read_record_image
from skysense_o.data.classes import CLASSES_FOLDER
from skysense_o.data.mapper import KEPT_BYTES
from skysense_o.sample import Sample
from skysense_o.text_files import read_json_lines
from skysense_o.vocabulary import Vocabulary

POINTS_FOLDER = CLASSES_FOLDER.parent / "points"
OTHERS = 1 / 3
"""Probability of asking about another annotated kind of object instead, if the kind in the question is annotated. If it
is not, the probability is 1/2."""


@cached(byte_cache(KEPT_BYTES), key=lambda record: (record["file_name"], record.get("at")))
def _read(record: dict) -> np.ndarray:
    """The image of a record, cached: several questions share an image, and decoding is the most expensive step."""
    return read_record_image(record)


class QuestionMapper:
    """Makes training samples from questions. An image has at most four versions (its rotations), so that the model can
    cache its features.

    All randomness comes from NumPy's global generator, which the loader seeds for each sample.
    """

    def __init__(self, cfg) -> None:
        """
        Raises:
            FileNotFoundError: INPUT.POINTS names no file.
            ValueError: a line of that file does not describe an annotated image.
        """
        self._points = read_points(cfg.INPUT.POINTS) if cfg.INPUT.POINTS else {}

    def __call__(self, record: dict) -> Sample:
        """Make a sample. A "how many" question is sometimes replaced by one about another annotated kind of object.

        Raises:
            BadData: the image cannot be read.
            ValueError: an annotated point is outside of the image.
        """
        image, points, file = _read(record), None, record["file_name"]
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
                        f"INPUT.POINTS has points up to {points.max(0).tolist()} in {file}, which is {image.shape[1]} x"
                        f" {image.shape[0]} pixels: give x and y in pixels of that image"
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
    """Read annotated objects: JSON lines {"image", "what", "points": [[x, y], ...]}, in pixels.

    Args:
        file: a file of `datasets/points`, or a full path.

    Returns:
        key of the image (see `image_key`) -> kind of object -> points.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line does not have these keys.
    """
    path = POINTS_FOLDER / file
    if not path.is_file():
        files = ", ".join(sorted(p.name for p in POINTS_FOLDER.glob("*.jsonl")))
        raise FileNotFoundError(
            f"INPUT.POINTS {file!r} is not in datasets/points, which has {files}; or give a full path"
        )
    marked: dict[str, dict[str, list[list[float]]]] = {}
    for number, entry in read_json_lines(path):
        try:
            marked.setdefault(image_key(entry["image"]), {})[entry["what"]] = [
                [float(x), float(y)] for x, y in entry["points"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: {str(entry)[:60]} is not {{"image", "what", "points": [[x, y], ...]}}'
            ) from error
    return marked


def asks_how_many(question: str) -> bool:
    """Whether the answer to a question is a number.

    >>> asks_how_many("How many cars are there?")
    True
    """
    return "how many" in question.lower()


def image_key(path: str) -> str:
    """Folder and stem of an image. The suffix is left out, because the same images are published as TIFF and as JPEG.

    >>> image_key("Images/beach/beach00.tif")
    'beach/beach00'
    """
    return "/".join(Path(path).with_suffix("").parts[-2:])
