"""Evaluate a model as its config says: which data sets, what each is asked, what is written down."""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

from skysense_o.checkpoint import find_weights
from skysense_o.data.captions import read_record_image
from skysense_o.data.catalog import evaluation_splits, find, records_of, register_folders
from skysense_o.data.classes import ClassTable, load_classes
from skysense_o.data.mapper import evaluation_sample
from skysense_o.evaluation.predictions import KINDS
from skysense_o.evaluation.prompts import evaluate_prompts
from skysense_o.evaluation.protocol import Protocol
from skysense_o.evaluation.questions import evaluate_questions
from skysense_o.evaluation.segmentation import MEANS, Task, evaluate
from skysense_o.evaluation.table import without_nan
from skysense_o.evaluation.zero_shot import evaluate_pairs, read_templates
from skysense_o.inference.classify import load_vqa_model
from skysense_o.vocabulary import Vocabulary
from skysense_o.vqa import VQAModel

logger = logging.getLogger(__name__)
WORDS_AND_IMAGES = ("classification", "image-text")
ABLE = {
    "SkySenseO": ("segmentation", *WORDS_AND_IMAGES),
    "Sam3": ("segmentation",),
    "ImageTextPretraining": WORDS_AND_IMAGES,
    "EmbeddedVQA": ("vqa", *WORDS_AND_IMAGES),
    "LlavaVQA": ("vqa",),
}
ALL = ("all",)


def file_stem(name: str) -> str:
    """What the results of a data set are filed as: a path, as DATASETS.TEST may hold, must not lead elsewhere."""
    return re.sub(r"[^\w.@-]+", "_", name).strip("_")


def task_of(name: str) -> str:
    """segmentation, classification, image-text or vqa; pairs from a path count as image-text."""
    return MetadataCatalog.get(name).get("task", "segmentation")


def able(cfg: CfgNode, task: str) -> str:
    """Why the config's model cannot do a task; empty where it can."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if task in ABLE.get(architecture, ()) or (task == "vqa" and cfg.MODEL.VQA.WEIGHTS):
        return ""
    cure = "; give one that does by MODEL.VQA.WEIGHTS" if task == "vqa" else ""
    return f"{architecture} does no {task}{cure}"


def test_sets(cfg: CfgNode) -> tuple[list[str], dict[str, str]]:
    """The data sets of DATASETS.TEST, or with "all" every one that is found; and of the others why they are left out:
    what is not there with the command that prepares it."""
    if tuple(cfg.DATASETS.TEST) != ALL:
        return list(cfg.DATASETS.TEST), {}
    found, left_out = [], {}
    for name, spec in evaluation_splits():
        try:
            records_of(name, cfg.DATALOADER.SKIP_BAD)
        except FileNotFoundError as error:
            there = spec.root.is_dir() and spec.folder in ("", spec.name)  # of shared folders another row may be meant
            left_out[name] = f"{error}" if there else f"not found: {spec.prepare or f'get it from {spec.homepage}'}"
            continue
        reason = able(cfg, spec.task)
        if reason:
            left_out[name] = reason
        else:
            found.append(name)
    return found, left_out


def check_tests(cfg: CfgNode) -> None:
    """What can be known to be wrong before a model is built.

    Raises:
        ValueError, KeyError, FileNotFoundError: with the value, what is permitted, and the cure.
    """
    protocol, names = Protocol.from_config(cfg), test_sets(cfg)[0]
    wrong = sorted(set(cfg.TEST.PREDICTIONS) - set(KINDS))
    if wrong:
        raise ValueError(f"TEST.PREDICTIONS {wrong} are not known: {', '.join(KINDS)}")
    if cfg.TEST.TEMPLATES:
        read_templates(cfg.TEST.TEMPLATES)
    if cfg.MODEL.VQA.WEIGHTS:
        find_weights(cfg.MODEL.VQA.WEIGHTS)
    classes: set[str] = set()
    for name in names:
        records_of(name, cfg.DATALOADER.SKIP_BAD)
        reason = able(cfg, task_of(name))
        if reason:
            raise ValueError(f"DATASETS.TEST {name!r}: {reason}")
        if task_of(name) == "segmentation":
            table = MetadataCatalog.get(name).class_table
            if not table:
                reason = "its names differ from image to image; it is for training"
                raise ValueError(f"DATASETS.TEST {name!r}: {reason}")
            for vocabulary in evaluation_vocabularies(cfg, load_classes(table), table).values():
                classes.update(protocol.words(vocabulary, table).classes)
    unknown = [name for name, _ in protocol.class_thresholds if name not in classes]
    if unknown and names:
        raise ValueError(f"TEST.CLASS_THRESHOLDS has {unknown}, which no set of DATASETS.TEST has: {sorted(classes)}")


def evaluation_vocabularies(cfg: CfgNode, table: ClassTable, name: str) -> dict[str, Vocabulary]:
    """The vocabularies that TEST.WORDS asks for: title -> one name for each class, in the order of the ids."""
    if cfg.TEST.WORDS == "names":
        return {"names": Vocabulary.of(table.classes)}
    if cfg.TEST.WORDS == "synonyms":
        return {"synonyms": Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)])}
    if cfg.TEST.WORDS == "heldout":
        if not Path(cfg.TEST.HELDOUT_FILE).is_file():
            raise FileNotFoundError(
                f"TEST.HELDOUT_FILE {cfg.TEST.HELDOUT_FILE!r} is no file: TEST.WORDS heldout needs a JSON of data set"
                " -> class -> words, such as tests/reference/heldout_words.json"
            )
        words = json.loads(Path(cfg.TEST.HELDOUT_FILE).read_text()).get(name, {})
        lacking = [n for n in table.classes if not words.get(n)]
        if lacking:
            raise ValueError(f"{cfg.TEST.HELDOUT_FILE} has no words for {lacking} of {name}: give each class some")
        count = min(len(words[n]) for n in table.classes)
        return {f"heldout {k + 1}": Vocabulary.of([words[n][k] for n in table.classes]) for k in range(count)}
    raise ValueError(f"TEST.WORDS {cfg.TEST.WORDS!r} is not known: names, synonyms or heldout")


def evaluate_all(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """Every data set of DATASETS.TEST, as training asks for it: `<data set>/mIoU` and the like."""
    register_folders(cfg.DATASETS.FOLDERS)
    model.text_bank.weights_changed()  # the moving average may have been swapped in
    numbers: dict[str, float] = {}
    for name in test_sets(cfg)[0]:
        body = evaluate_set(cfg, model, name)
        numbers.update({f"{name}/{key}": value for key, value in body["numbers"].items()})
        if comm.is_main_process():
            path = Path(cfg.OUTPUT_DIR) / "inference" / f"{file_stem(name)}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(without_nan(body), indent=1))
    return numbers


def evaluate_set(cfg: CfgNode, model: nn.Module, name: str, vqa_model: VQAModel | None = None) -> dict:
    """One data set -> {"numbers": name -> share} and what else there is to know of it, by task.

    Numbers: of segmentation those of `segmentation_metrics`, means where classes are called several ways; of scenes and
    captions those of `evaluate_pairs`; of questions those of `evaluate_questions`. Files go to OUTPUT_DIR/inference.
    """
    records, folder = records_of(name, cfg.DATALOADER.SKIP_BAD), Path(cfg.OUTPUT_DIR) / "inference"
    task = task_of(name)
    if task == "segmentation":
        return _segmentation(cfg, model, name, records, folder)
    if task == "vqa":
        who = vqa_model or vqa_model_of(cfg, model)
        was_training = getattr(who, "training", False)
        if isinstance(who, nn.Module):
            who.eval()
        numbers, rows = evaluate_questions(
            who, records, read_record_image, training_questions(cfg, name), max(cfg.SEED, 0)
        )
        if isinstance(who, nn.Module):
            who.train(was_training)
        if comm.is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{file_stem(name)}_predictions.json").write_text(json.dumps(rows, indent=0))
        # What people asked is the harder half and no theme is its own answer: it decides which checkpoint is best.
        first = "model/human" if "model/human" in numbers else "model/overall"
        return {"numbers": {first: numbers[first], **numbers}}
    table = MetadataCatalog.get(name).get("class_table")
    names = load_classes(table).classes if table else records[0].get("names")
    templates = read_templates(cfg.TEST.TEMPLATES) if cfg.TEST.TEMPLATES else cfg.MODEL.TEMPLATES
    figure = folder / f"{file_stem(name)}_confusion"
    asked = vqa_model if vqa_model is not None and task in ABLE.get(type(vqa_model).__name__, ()) else model
    found = evaluate_pairs(asked, records, read_record_image, names, templates, cfg.INPUT.CROP_SIZE, figure)
    per_class = found.pop("per_class", None)
    return {"numbers": found, **({"per_class": per_class, "templates": list(templates)} if per_class else {})}


def _segmentation(cfg: CfgNode, model: nn.Module, name: str, records: list[dict], folder: Path) -> dict:
    table_name = MetadataCatalog.get(name).class_table
    table, protocol = load_classes(table_name), Protocol.from_config(cfg)
    vocabularies = evaluation_vocabularies(cfg, table, table_name)
    asked = {title: protocol.words(vocabulary, table_name) for title, vocabulary in vocabularies.items()}
    task = Task(
        file_stem(name),
        [partial(evaluation_sample, record) for record in records],
        table.colors,
        table.background or (False,) * len(table),
        folder,
        protocol,
        cfg.TEST.IMAGES,
        tuple(cfg.TEST.PREDICTIONS),
    )
    results = evaluate(model, task, asked)
    first = next(iter(results.values()))
    numbers = {key: sum(r[key] for r in results.values()) / len(results) for key in MEANS if key in first}
    if len(results) > 1:
        each = ", ".join(f"{title} {r['mIoU']:.4f}" for title, r in results.items())
        logger.info("%s: mean mIoU %.4f over %s", name, numbers["mIoU"], each)
    if cfg.TEST.PROMPTS:
        scenes = [partial(evaluation_sample, record, next(iter(vocabularies.values()))) for record in records]
        found = evaluate_prompts(model, scenes, folder / f"{file_stem(name)}_images")
        numbers.update({f"prompt_{key}": value for key, value in found.items()})
    words = {title: list(v.phrases) for title, v in asked.items()}
    return {"numbers": numbers, "results": results, "words": words}


def training_questions(cfg: CfgNode, name: str) -> list[dict]:
    """Questions whose answers may be looked up: of the train split of the same set, else of DATASETS.TRAIN."""
    spec = find(name)[0][0]
    names = [f"{spec.name}_train"] if "train" in spec.splits else list(cfg.DATASETS.TRAIN)
    try:
        return [r for n in names for r in records_of(n, cfg.DATALOADER.SKIP_BAD) if "question" in r]
    except FileNotFoundError:
        logger.warning("%s: no training questions, so the question alone gives nothing to compare with", name)
        return []


def vqa_model_of(cfg: CfgNode, model: nn.Module) -> VQAModel:
    """The model itself where it answers, else that of MODEL.VQA.WEIGHTS."""
    return model if hasattr(model, "answer") else load_vqa_model(cfg.MODEL.VQA.WEIGHTS, cfg.MODEL.DEVICE)
