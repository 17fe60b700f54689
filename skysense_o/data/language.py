"""Readers of captions and questions, in their publishers' file formats."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.text_files import checked, read_csv, read_json_file, read_json_lines, read_text, take

logger = logging.getLogger(__name__)
IMAGE_COLUMNS = ("filepath", "file_name", "img_name", "image", "path")
TEXT_COLUMNS = ("title_multi_objects", "title", "title_raw", "caption", "captions", "text")


def index_file(spec: DatasetSpec, split: str) -> Path:
    """The first existing file among those that `spec.index` lists, separated by bars.

    Raises:
        FileNotFoundError: none of the files exists.
    """
    names = [name.format(split=spec.splits[split]) for name in spec.index.split("|")]
    for name in names:
        paths = sorted(spec.root.glob(name))
        if paths:
            return paths[0]
    raise FileNotFoundError(f"none of {', '.join(names)} in {spec.root}: {spec.hint}")


def image_folder(spec: DatasetSpec) -> Path:
    """The first existing folder among those that `spec.images` lists, separated by bars.

    Raises:
        FileNotFoundError: none of the folders exists.
    """
    for name in spec.images.split("|"):
        if (spec.root / name).is_dir():
            return spec.root / name
    raise FileNotFoundError(f"none of the folders {spec.images.replace('|', ', ')} in {spec.root}: {spec.hint}")


def read_captions(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read captions in one of two formats.

    RSICD, RSITMD and UCM-captions are published in Karpathy's JSON format, {"images": [{"filename", "split",
    "sentences": [{"raw"}]}]}. The other format is JSON lines {"image", "split", "captions"}, with image paths relative
    to the data set's folder.

    Yields:
        records {"file_name", "dataset", "captions"}, or {"bad": message}.
    """
    path = index_file(spec, split)
    if path.suffix == ".jsonl":
        for number, entry in read_json_lines(path):
            where = f"{path}, line {number}"
            if split in (take(entry, "split", str, where), "all"):
                captions = [checked(c, str, f"{where}: a caption") for c in take(entry, "captions", list, where)]
                yield _with_image(spec, spec.root / take(entry, "image", str, where), captions=captions)
        return
    folder = image_folder(spec)
    for number, entry in enumerate(take(read_json_file(path), "images", list, str(path)), 1):
        where = f"{path}, image {number}"
        if split in (take(entry, "split", str, where), "all"):
            sentences = [take(one, "raw", str, where).strip() for one in take(entry, "sentences", list, where)]
            image = folder / take(entry, "filepath", str, where, "") / take(entry, "filename", str, where)
            yield _with_image(spec, image, captions=[s for s in sentences if s])


def read_table(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read a CSV with a column of image paths and one or more columns of captions (SkyScript, RS5M).

    Yields:
        records {"file_name", "dataset", "captions"}, or {"bad": message}.

    Raises:
        ValueError: the file has no such columns, or a caption with commas is not quoted.
    """
    path, images = index_file(spec, split), image_folder(spec)
    columns, rows = read_csv(path)
    path_column = next((c for c in IMAGE_COLUMNS if c in columns), None)
    text_columns = [c for c in TEXT_COLUMNS if c in columns]
    if path_column is None or not text_columns:
        raise ValueError(
            f"{path} has the columns {columns}: one of {', '.join(IMAGE_COLUMNS)} and one of"
            f" {', '.join(TEXT_COLUMNS)} are needed"
        )
    for _, row in rows:
        captions = list(dict.fromkeys(row[c].strip() for c in text_columns if row[c].strip()))
        yield _with_image(spec, images / row[path_column], captions=captions)


def read_rsvqa(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read RSVQA: `*_questions.json`, `*_answers.json` with the same ids, and images `<img_id>.tif`.

    Entries that are not "active" only fill gaps in the ids and are left out.

    Yields:
        records {"file_name", "dataset", "question", "answer", "kind"}, or {"bad": message}.
    """
    path, images = index_file(spec, split), image_folder(spec)
    answers_path = path.with_name(path.name.replace("_questions", "_answers"))
    if not answers_path.is_file():
        raise FileNotFoundError(f"{path} has no {answers_path.name} beside it: {spec.hint}")
    answers = {}
    for number, entry in enumerate(take(read_json_file(answers_path), "answers", list, str(answers_path)), 1):
        where = f"{answers_path}, answer {number}"
        if take(entry, "active", bool, where, False):
            answers[take(entry, "id", int, where)] = take(entry, "answer", (str, int, float), where)
    for number, entry in enumerate(take(read_json_file(path), "questions", list, str(path)), 1):
        where = f"{path}, question {number}"
        if not take(entry, "active", bool, where, False):
            continue
        ids = [checked(i, int, f"{where}: an id") for i in take(entry, "answers_ids", list, where)]
        answer = next((answers[i] for i in ids if i in answers), None)
        if answer is None:
            yield {"bad": f"{path}: question {take(entry, 'id', int, where)} has no answer"}
            continue
        fields = {"question": take(entry, "question", str, where), "answer": str(answer)}
        fields["kind"] = take(entry, "type", str, where)
        yield _with_image(spec, images / f"{take(entry, 'img_id', (int, str), where)}.tif", **fields)


def read_text_questions(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read RSIVQA's lines `image:question?answer`, or JSON lines {"image", "split", "question", "answer", "kind"}.

    A value of `spec.splits` is the split's name in the file and, after a space, text that its questions must contain.

    Yields:
        records {"file_name", "dataset", "question", "answer" [, "kind"]}, or {"bad": message}.
    """
    path, (file_split, _, words) = index_file(spec, split), spec.splits[split].partition(" ")
    if path.suffix == ".jsonl":
        for number, entry in read_json_lines(path):
            where = f"{path}, line {number}"
            fields = {key: take(entry, key, str, where) for key in ("question", "answer")}
            fields |= {"kind": take(entry, "kind", str, where)} if "kind" in entry else {}
            if file_split in (take(entry, "split", str, where), "all") and words in fields["question"].lower():
                yield _with_image(spec, spec.root / take(entry, "image", str, where), **fields)
        return
    images = {p.name: p for p in image_folder(spec).rglob("*") if p.is_file()}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        image, colon, rest = line.strip().partition(":")
        question, mark, answer = rest.rpartition("?")
        if not line.strip():
            continue
        if not (colon and mark and answer.strip()):
            yield {"bad": f"{path}, line {number}: {line[:80]!r} is not image:question?answer"}
            continue
        if words not in question.lower():
            continue
        name = Path(image.strip().replace("\\", "/")).name
        fields = {"question": question.strip() + "?", "answer": answer.strip()}
        yield _with_image(spec, images.get(name, image_folder(spec) / name), **fields)


def read_conversations(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read VHM's evaluation files: a list of {"image", "image_path", "conversations": [{"from", "value"}, ...]}.

    Yields:
        records {"file_name", "dataset", "question", "answer"}, or {"bad": message}.
    """
    path = index_file(spec, split)
    for number, entry in enumerate(checked(read_json_file(path), list, str(path)), 1):
        where = f"{path}, entry {number}"
        turns = {}
        for turn in take(entry, "conversations", list, where):
            turns[take(turn, "from", str, where)] = take(turn, "value", str, where)
        question = turns.get("human", "").replace("<image>", "").strip()
        image = path.parent / take(entry, "image_path", str, where, "") / take(entry, "image", str, where)
        yield _with_image(spec, image, question=question, answer=turns.get("gpt", "").strip())


def _with_image(spec: DatasetSpec, image: Path, **rest) -> dict:
    if not os.path.isfile(image):  # os.path.isfile also returns False for names that the system does not permit
        return {"bad": f"{image} is missing"}
    return {"file_name": str(image), "dataset": spec.key, **rest}
