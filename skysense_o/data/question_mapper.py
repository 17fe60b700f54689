"""From a record with a question to a Sample: the picture as it is, since what is left and what is right must stay."""

from __future__ import annotations

import numpy as np
import torch

from skysense_o.data.mapper import KEPT_BYTES
from skysense_o.data.pairs import read_picture
from skysense_o.sample import Sample
from skysense_o.vocabulary import Vocabulary


class QuestionMapper:
    """No randomness: a picture is the same each time, so what a frozen tower sees of it can be kept."""

    def __init__(self, cfg) -> None:
        """Nothing of the config changes what is done; all mappers are built from it."""
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
        return {
            "image": torch.from_numpy(self._read(record).copy()).permute(2, 0, 1),
            "vocabulary": Vocabulary((question,), ((question,),), (False,)),
            "question": question,
            "answer": record["answer"],
            "file_name": record["file_name"],
        }
