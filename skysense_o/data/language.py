"""Readers of captions and questions, in the file forms that their publishers use."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from skysense_o.data.datasets.spec import DatasetSpec

logger = logging.getLogger(__name__)
IMAGE_COLUMNS = ("filepath", "file_name", "img_name", "image", "path")
TEXT_COLUMNS = ("title_multi_objects", "title", "title_raw", "caption", "captions", "text")


def index_file(spec: DatasetSpec, split: str) -> Path:
    """The first of the row's index files (alternatives with bars) that is there."""
    names = [name.format(split=spec.splits[split]) for name in spec.index.split("|")]
    for name in names:
        found = sorted(spec.root.glob(name))
        if found:
            return found[0]
    raise FileNotFoundError(f"none of {', '.join(names)} in {spec.root}: {spec.hint}")


def image_folder(spec: DatasetSpec) -> Path:
    """The first of the row's image folders (alternatives with bars) that is there."""
    for name in spec.images.split("|"):
        if (spec.root / name).is_dir():
            return spec.root / name
    raise FileNotFoundError(f"none of the folders {spec.images.replace('|', ', ')} in {spec.root}: {spec.hint}")


def read_captions(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Karpathy's JSON, {"images": [{"filename", "split", "sentences": [{"raw"}]}]}, as RSICD, RSITMD and UCM-captions
    come; or JSON lines {"image", "split", "captions"}, the image's path from the data set's folder."""
    path = index_file(spec, split)
    if path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if split in (entry["split"], "all"):
                yield _with_image(spec, spec.root / entry["image"], captions=entry["captions"])
        return
    folder = image_folder(spec)
    for entry in json.loads(path.read_text())["images"]:
        if split in (entry["split"], "all"):
            sentences = [sentence["raw"].strip() for sentence in entry["sentences"]]
            image = folder / entry.get("filepath", "") / entry["filename"]
            yield _with_image(spec, image, captions=[s for s in sentences if s])


def read_table(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """A CSV with a column of paths and one or more of texts (SkyScript, RS5M)."""
    path, images = index_file(spec, split), image_folder(spec)
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        where = next((c for c in IMAGE_COLUMNS if c in (rows.fieldnames or ())), None)
        texts = [c for c in TEXT_COLUMNS if c in (rows.fieldnames or ())]
        if where is None or not texts:
            raise ValueError(
                f"{path} has the columns {rows.fieldnames}: one of {', '.join(IMAGE_COLUMNS)} and one of"
                f" {', '.join(TEXT_COLUMNS)} are needed"
            )
        for line in rows:
            captions = list(dict.fromkeys(line[c].strip() for c in texts if (line[c] or "").strip()))
            yield _with_image(spec, images / line[where], captions=captions)


def read_rsvqa(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """RSVQA's three files: `*_questions.json` and `*_answers.json` share ids; an image is `<img_id>.tif`.

    Entries that are not "active" only keep the numbering and are left out.
    """
    path, images = index_file(spec, split), image_folder(spec)
    answers_path = path.with_name(path.name.replace("_questions", "_answers"))
    if not answers_path.is_file():
        raise FileNotFoundError(f"{path} has no {answers_path.name} beside it: {spec.hint}")
    answers = {a["id"]: a["answer"] for a in json.loads(answers_path.read_text())["answers"] if a.get("active")}
    for entry in json.loads(path.read_text())["questions"]:
        if not entry.get("active"):
            continue
        answer = next((answers[i] for i in entry["answers_ids"] if i in answers), None)
        if answer is None:
            yield {"bad": f"{path}: question {entry['id']} has no answer"}
            continue
        said = {"question": entry["question"], "answer": str(answer), "kind": entry["type"]}
        yield _with_image(spec, images / f"{entry['img_id']}.tif", **said)


def read_text_questions(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """RSIVQA's lines `image:question?answer`; or JSON lines {"image", "split", "question", "answer", "kind"}.

    The row's `splits` say which split of the file, and after a space what its questions must contain.
    """
    path, (wanted, _, words) = index_file(spec, split), spec.splits[split].partition(" ")
    if path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if wanted in (entry["split"], "all") and words in entry["question"].lower():
                said = {key: entry[key] for key in ("question", "answer", "kind") if key in entry}
                yield _with_image(spec, spec.root / entry["image"], **said)
        return
    images = {p.name: p for p in image_folder(spec).rglob("*") if p.is_file()}
    for number, line in enumerate(path.read_text().splitlines(), 1):
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
        said = {"question": question.strip() + "?", "answer": answer.strip()}
        yield _with_image(spec, images.get(name, image_folder(spec) / name), **said)


def read_conversations(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """VHM's evaluation files: a list of {"image", "image_path", "conversations": [{"from", "value"}, ...]}."""
    path = index_file(spec, split)
    for entry in json.loads(path.read_text()):
        turns = {turn["from"]: turn["value"] for turn in entry["conversations"]}
        question = turns.get("human", "").replace("<image>", "").strip()
        image = path.parent / entry.get("image_path", "") / entry["image"]
        yield _with_image(spec, image, question=question, answer=turns.get("gpt", "").strip())


def _with_image(spec: DatasetSpec, image: Path, **rest) -> dict:
    if not image.is_file():
        return {"bad": f"{image} is missing"}
    return {"file_name": str(image), "dataset": spec.key, **rest}
