"""From a record with a question to a Sample.

The picture stays as it is, since what is left and what is right must stay; where objects are marked to be counted
(INPUT.POINTS) it is turned, since their number stays.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from skysense_o.data.mapper import KEPT_BYTES
from skysense_o.data.pairs import read_picture
from skysense_o.sample import Sample
from skysense_o.vocabulary import Vocabulary


class QuestionMapper:
    """A picture is the same each time, or one of its four turns, so what a frozen tower sees of it can be kept.

    With marked objects, for questions of how many: where others are marked than are asked for, these are asked for
    every second time.
    """

    def __init__(self, cfg) -> None:
        """
        Raises:
            FileNotFoundError, ValueError: INPUT.POINTS names no file, or one with a line that is no marked picture.
        """
        self._points = read_points(cfg.INPUT.POINTS) if cfg.INPUT.POINTS else {}
        self._kept: dict[str, np.ndarray] = {}  # several questions are about one picture: decoding costs most of all
        self._bytes = 0

    def _read(self, record: dict) -> np.ndarray:
        key = f"{record['file_name']} {record.get('at')}"
        if key not in self._kept:
            image = read_picture(record)
            if self._bytes + image.nbytes > KEPT_BYTES:
                return image
            self._kept[key], self._bytes = image, self._bytes + image.nbytes
        return self._kept[key]

    def __call__(self, record: dict) -> Sample:
        question = record["question"]
        image = torch.from_numpy(self._read(record).copy()).permute(2, 0, 1)
        file, answer, points = record["file_name"], record["answer"], None
        if self._points:
            for what, marked in self._points.get(_key(file), {}).items():
                if f"many {what}" not in question.lower():  # something else was asked of it: ask for these as well
                    if np.random.rand() < 0.5:
                        continue
                    question, answer = f"How many {what}s in the picture?", str(len(marked))
                points = torch.tensor(marked).view(-1, 2) / torch.tensor([image.shape[2], image.shape[1]])
            turn = int(np.random.randint(4))
            image, file = torch.rot90(image, turn, (1, 2)), f"{file} turned {turn}"
            for _ in range(turn if points is not None else 0):
                points = torch.stack([points[:, 1], 1 - points[:, 0]], 1)
        sample: Sample = {
            "image": image,
            "vocabulary": Vocabulary((question,), ((question,),), (False,)),
            "question": question,
            "answer": answer,
            "file_name": file,
        }
        if points is not None:
            sample["points"] = points
        return sample


def read_points(path: str | Path) -> dict[str, dict[str, list[list[float]]]]:
    """JSON lines {"image", "what", "points": [[x, y], ...]}, in pixels -> picture -> what -> points.

    A picture is told by its folder and stem, since the same ones come as TIFF and as JPEG.
    """
    if not Path(path).is_file():  # not below the working folder: one of the repository's own
        path = Path(__file__).parents[2] / path
    if not Path(path).is_file():
        raise FileNotFoundError(f"INPUT.POINTS {str(path)!r}: no such file; see datasets/points, or leave it empty")
    marked: dict[str, dict[str, list[list[float]]]] = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            marked.setdefault(_key(entry["image"]), {})[entry["what"]] = [
                [float(x), float(y)] for x, y in entry["points"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: {line[:60]!r} is not {{"image": ..., "what": ..., "points": [[x, y], ...]}}'
            ) from error
    return marked


def _key(path: str) -> str:
    return "/".join(Path(path).with_suffix("").parts[-2:])
