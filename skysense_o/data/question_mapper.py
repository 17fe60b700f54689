"""From a record with a question to a Sample: the picture as it is, since what is left and what is right must stay."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from detectron2.config import configurable

from skysense_o.data.pairs import read_picture
from skysense_o.sample import Sample
from skysense_o.vocabulary import Vocabulary


class QuestionMapper:
    """No randomness: a picture is the same each time, so what a frozen tower sees of it can be kept."""

    @configurable
    def __init__(self, *, side: int) -> None:
        """side: pictures are resized to this square."""
        self.side = side

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {"side": cfg.INPUT.CROP_SIZE}

    def __call__(self, record: dict) -> Sample:
        question = record["question"]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(self.read(record).transpose(2, 0, 1))),
            "vocabulary": Vocabulary((question,), ((question,),), (False,)),
            "question": question,
            "answer": record["answer"],
            "file_name": record["file_name"],
        }

    def read(self, record: dict) -> np.ndarray:
        """uint8 (side,side,3) RGB."""
        return cv2.resize(read_picture(record), (self.side, self.side), interpolation=cv2.INTER_AREA)
