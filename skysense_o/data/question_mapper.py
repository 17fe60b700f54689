"""From a record with a question to a Sample: the picture as it is, since what is left and what is right must stay."""

from __future__ import annotations

import torch

from skysense_o.data.pairs import read_picture
from skysense_o.sample import Sample
from skysense_o.vocabulary import Vocabulary


class QuestionMapper:
    """No randomness: a picture is the same each time, so what a frozen tower sees of it can be kept."""

    def __init__(self, cfg) -> None:
        """Nothing of the config changes what is done; all mappers are built from it."""

    def __call__(self, record: dict) -> Sample:
        question = record["question"]
        return {
            "image": torch.from_numpy(read_picture(record).copy()).permute(2, 0, 1),
            "vocabulary": Vocabulary((question,), ((question,),), (False,)),
            "question": question,
            "answer": record["answer"],
            "file_name": record["file_name"],
        }
