"""Evaluate visual question answering: accuracy per question type, with two baselines.

The baselines are the question without an image, and the question with a wrong image.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from detectron2.utils import comm
from tabulate import tabulate

from skysense_o.vqa.vqa_model import VQAModel, normalise
from skysense_o.workers import Each, here

logger = logging.getLogger(__name__)
BATCH = 16  # images
BUCKETS = (0, 10, 100, 1000)
"""Upper bounds of RSVQA's buckets for numbers (Lobry et al. 2020): 0, 1 to 10, 11 to 100, 101 to 1000, over 1000."""


def kind_of(record: dict) -> str:
    """The type of a question, from the data set or, for questions that people wrote freely, from its words."""
    kind = record.get("kind", "")
    if kind not in ("", "human"):
        return kind
    question = record["question"].lower()
    if "how many" in question:
        return "count"
    if question.startswith("where") or "location" in question:
        return "location"
    if re.match(r"(does|do|is|are|can|has|have)\b", question):
        return "presence"
    return "theme by people" if "theme" in question else "other"


def bucket(answer: str) -> str:
    """Replace a number by its bucket in RSVQA, and keep its unit; other answers are only normalised.

    >>> bucket("12 m2"), bucket("Yes")
    ('bucket 2m2', 'yes')
    """
    match = re.fullmatch(r"(\d+)\s*(m2)?", normalise(answer))
    if match is None:
        return normalise(answer)
    index = next((i for i, end in enumerate(BUCKETS) if int(match[1]) <= end), len(BUCKETS))
    return f"bucket {index}{match[2] or ''}"


def answers_match(answer: str, truth: str) -> bool:
    """Whether two answers are equal after `normalise`."""
    return normalise(answer) == normalise(truth)


def within_one(answer: str, truth: str) -> bool:
    """Whether two numbers differ by at most one; other answers must be equal.

    >>> within_one("four", "5"), within_one("yes", "no")
    (True, False)
    """
    answer, truth = normalise(answer), normalise(truth)
    return abs(int(answer) - int(truth)) <= 1 if answer.isdecimal() and truth.isdecimal() else answer == truth


class QuestionOnly:
    """Baseline without images: the most frequent training answer to the same question, else to its question type."""

    def __init__(self, records: Sequence[dict]) -> None:
        by_question, by_kind = defaultdict(Counter), defaultdict(Counter)
        for record in records:
            answer = normalise(record["answer"])
            by_question[normalise(record["question"])][answer] += 1
            by_kind[kind_of(record)][answer] += 1
        self.questions = {key: count.most_common(1)[0][0] for key, count in by_question.items()}
        self.kinds = {key: count.most_common(1)[0][0] for key, count in by_kind.items()}

    def __call__(self, record: dict) -> str:
        return self.questions.get(normalise(record["question"])) or self.kinds.get(kind_of(record), "")


def evaluate_questions(
    vqa_model: VQAModel,
    records: Sequence[dict],
    read: Callable[[dict], np.ndarray],
    training: Sequence[dict],
    seed: int = 0,
    each: Each | None = None,
) -> tuple[dict[str, float], list[dict]]:
    """Evaluate a VQA model and the two baselines on all questions. The images are split across processes.

    Args:
        vqa_model: answers the questions.
        records: each has "file_name", "question", "answer" and possibly "kind".
        read: record -> image, uint8 (H,W,3) RGB.
        training: records for the question-only baseline.
        seed: seed of the shuffled images.
        each: distributes the images over workers that hold the model; None: this process asks all questions.

    Returns:
        numbers: accuracies "model/<type>", "question_only/<type>" and "shuffled/<type>". Beside the question types
            there are "average" over types, "overall" over questions, and "human" over questions that people wrote
            freely. "count_bucketed" and "area_bucketed" compare RSVQA's buckets, and "count_within_one" allows an error
            of one; these three are not part of the averages.
        predictions: one row per question, with the three answers under "predictions".

    Raises:
        ValueError: all questions are about one image.
    """
    lookup, rows, by_image = QuestionOnly(training), [], defaultdict(list)
    for index, record in enumerate(records):
        by_image[record["file_name"]].append(index)
    files = _shuffled(list(by_image), seed)
    mine = np.array_split(np.arange(len(files)), comm.get_world_size())[comm.get_rank()]
    batches = [mine[first : first + BATCH] for first in range(0, len(mine), BATCH)]
    ask = partial(_answers, records, dict(by_image), files, read)
    for _, answers in (each or here(vqa_model))(ask, batches, desc="questions", unit="batch"):
        for index, model, shuffled in answers:
            record = records[index]
            predictions = {"model": model, "question_only": lookup(record), "shuffled": shuffled}
            row = {key: record[key] for key in ("file_name", "question", "answer")}
            human = record.get("kind") == "human"
            rows.append({"number": index, **row, "kind": kind_of(record), "human": human, "predictions": predictions})
    rows = sorted((row for part in comm.all_gather(rows) for row in part), key=lambda row: row["number"])
    numbers = {
        f"{name}/{key}": share for name in rows[0]["predictions"] for key, share in accuracy_by_kind(rows, name).items()
    }
    logger.info("%d questions\n%s", len(rows), question_table(numbers))
    return numbers, rows


def _answers(
    records: Sequence[dict],
    by_image: dict[str, list[int]],
    files: list[str],
    read: Callable[[dict], np.ndarray],
    vqa_model: VQAModel,
    chosen: np.ndarray,
) -> list[tuple[int, str, str]]:
    """For each question about the chosen images: its index, and the answers for its image and for the next image."""
    needed = {files[j % len(files)] for i in chosen for j in (i, i + 1)}
    images = {f: torch.from_numpy(read(records[by_image[f][0]]).copy()).permute(2, 0, 1) for f in needed}
    pairs = [(i, index) for i in chosen for index in by_image[files[i]]]  # (index of the image, index of the record)
    own = [images[files[i]] for i, _ in pairs]
    others = [images[files[(i + 1) % len(files)]] for i, _ in pairs]
    questions = [records[index]["question"] for _, index in pairs]
    answers = vqa_model.answer([*own, *others], [*questions, *questions])
    return [(index, *both) for (_, index), both in zip(pairs, zip(answers, answers[len(pairs) :]))]


def accuracy_by_kind(rows: Sequence[dict], source: str) -> dict[str, float]:
    """Accuracies of one of "model", "question_only" and "shuffled"; see `evaluate_questions`."""
    by_kind, human, leniently = defaultdict(list), [], defaultdict(list)
    for row in rows:
        right = answers_match(row["predictions"][source], row["answer"])
        by_kind[row["kind"]].append(right)
        if row["human"]:
            human.append(right)
        if row["kind"] in ("count", "area"):
            leniently[f"{row['kind']}_bucketed"].append(bucket(row["predictions"][source]) == bucket(row["answer"]))
        if row["kind"] == "count":
            leniently["count_within_one"].append(within_one(row["predictions"][source], row["answer"]))
    numbers = {kind: float(np.mean(right)) for kind, right in sorted(by_kind.items())}
    overall = float(np.mean([right for some in by_kind.values() for right in some]))
    means = {"average": float(np.mean(list(numbers.values()))), "overall": overall}
    if human:
        means["human"] = float(np.mean(human))
    return {**numbers, **means, **{key: float(np.mean(right)) for key, right in leniently.items()}}


def question_table(numbers: dict[str, float]) -> str:
    """The accuracies as a table, one row per question type."""
    kinds = [key.partition("/")[2] for key in numbers if key.startswith("model/")]
    sources = ("model", "question_only", "shuffled")
    rows = [[kind, *(numbers[f"{source}/{kind}"] for source in sources)] for kind in kinds]
    return tabulate(rows, ["type", "model", "question only", "images shuffled"], floatfmt=".3f")


def _shuffled(files: list[str], seed: int) -> list[str]:
    """The images in random order. The wrong-image baseline asks the questions about each image of the next image."""
    if len(files) < 2:
        raise ValueError(f"all questions are about {files[0]!r}: the shuffled baseline needs at least two images")
    return [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
