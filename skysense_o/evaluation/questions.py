"""Visual question answering: accuracy by type of question, beside what the question alone and other images give."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.utils import comm
from tabulate import tabulate
from tqdm import tqdm

from skysense_o.vqa.vqa_model import VQAModel, normalise

logger = logging.getLogger(__name__)
BATCH = 16  # images
BUCKETS = (0, 10, 100, 1000)
"""Upper ends of RSVQA's quantised numbers (Lobry et al. 2020): 0, 1 to 10, 11 to 100, 101 to 1000, more."""


def kind_of(record: dict) -> str:
    """The type of a question: that of its data set, or, where people asked freely, by how it begins."""
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
    """A number in RSVQA's buckets, with its unit; anything else as it is."""
    match = re.fullmatch(r"(\d+)\s*(m2)?", normalise(answer))
    if match is None:
        return normalise(answer)
    place = next((i for i, end in enumerate(BUCKETS) if int(match[1]) <= end), len(BUCKETS))
    return f"bucket {place}{match[2] or ''}"


def answers_match(answer: str, truth: str) -> bool:
    """Exact match after `normalise`."""
    return normalise(answer) == normalise(truth)


def within_one(answer: str, truth: str) -> bool:
    """Numbers at most one apart; anything else must be the same."""
    said, right = normalise(answer), normalise(truth)
    return abs(int(said) - int(right)) <= 1 if said.isdecimal() and right.isdecimal() else said == right


class QuestionOnly:
    """What the question alone gives: its most frequent answer in training, else that of its type."""

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
) -> tuple[dict[str, float], list[dict]]:
    """Ask every question of its image, and of another one.

    Args:
        read: record -> uint8 (H,W,3) RGB. training: records whose answers the question-only baseline looks up.
        seed: of the shuffle. Every process takes its share.

    Returns:
        numbers: "model/<type>", "question_only/<type>" and "shuffled/<type>" with the shares of right answers, and for
        each the average over the types ("average"), over the questions ("overall"), and over those that people asked
        freely ("human"), where there are such; "count_bucketed" and "area_bucketed" are the same answers in RSVQA's
        buckets, "count_within_one" those that miss by one at most: no part of any mean.
        predictions: one row a question, to score again.
    """
    lookup, rows, by_image = QuestionOnly(training), [], defaultdict(list)
    for number, record in enumerate(records):
        by_image[record["file_name"]].append(number)
    files = _in_a_ring(list(by_image), seed)
    mine = np.array_split(np.arange(len(files)), comm.get_world_size())[comm.get_rank()]
    for first in tqdm(range(0, len(mine), BATCH), desc="questions", disable=not comm.is_main_process()):
        places = mine[first : first + BATCH]
        around = {files[p % len(files)] for place in places for p in (place, place + 1)}
        seen = {f: torch.from_numpy(read(records[by_image[f][0]]).copy()).permute(2, 0, 1) for f in around}
        asked = [(place, number) for place in places for number in by_image[files[place]]]
        own = [seen[files[place]] for place, _ in asked]
        others = [seen[files[(place + 1) % len(files)]] for place, _ in asked]
        questions = [records[number]["question"] for _, number in asked]
        said = vqa_model.answer([*own, *others], [*questions, *questions])
        for (_, number), model, shuffled in zip(asked, said, said[len(asked) :]):
            record = records[number]
            answers = {"model": model, "question_only": lookup(record), "shuffled": shuffled}
            row = {key: record[key] for key in ("file_name", "question", "answer")}
            human = record.get("kind") == "human"
            rows.append({"number": number, **row, "kind": kind_of(record), "human": human, "said": answers})
    rows = sorted((row for part in comm.all_gather(rows) for row in part), key=lambda row: row["number"])
    numbers = {f"{who}/{key}": share for who in rows[0]["said"] for key, share in accuracy_by_kind(rows, who).items()}
    logger.info("%d questions\n%s", len(rows), question_table(numbers))
    return numbers, rows


def accuracy_by_kind(rows: Sequence[dict], who: str) -> dict[str, float]:
    """Right answers of one of the three, by type and as means; see `evaluate_questions`."""
    by_kind, human, leniently = defaultdict(list), [], defaultdict(list)
    for row in rows:
        right = answers_match(row["said"][who], row["answer"])
        by_kind[row["kind"]].append(right)
        if row["human"]:
            human.append(right)
        if row["kind"] in ("count", "area"):
            leniently[f"{row['kind']}_bucketed"].append(bucket(row["said"][who]) == bucket(row["answer"]))
        if row["kind"] == "count":
            leniently["count_within_one"].append(within_one(row["said"][who], row["answer"]))
    numbers = {kind: float(np.mean(right)) for kind, right in sorted(by_kind.items())}
    overall = float(np.mean([right for some in by_kind.values() for right in some]))
    means = {"average": float(np.mean(list(numbers.values()))), "overall": overall}
    if human:
        means["human"] = float(np.mean(human))
    return {**numbers, **means, **{key: float(np.mean(right)) for key, right in leniently.items()}}


def question_table(numbers: dict[str, float]) -> str:
    """Type by type: the model, the question alone, other images."""
    kinds = [key.partition("/")[2] for key in numbers if key.startswith("model/")]
    who = ("model", "question_only", "shuffled")
    rows = [[kind, *(numbers[f"{one}/{kind}"] for one in who)] for kind in kinds]
    return tabulate(rows, ["type", "model", "question only", "images shuffled"], floatfmt=".3f")


def _in_a_ring(files: list[str], seed: int) -> list[str]:
    """The images in a random order: shuffled, the questions of each are asked of the next one, in a ring."""
    if len(files) < 2:
        raise ValueError(f"all questions are about {files[0]!r}: with one image nothing can be shuffled")
    return [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
