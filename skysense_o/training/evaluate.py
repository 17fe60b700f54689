"""Evaluate a model on the data sets of its config, and write the results."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

from skysense_o.checkpoint import find_weights
from skysense_o.data.captions import read_record_image
from skysense_o.data.catalog import evaluation_splits, find, records_of, register_folders, spec_of
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
from skysense_o.text_files import read_json_file
from skysense_o.vocabulary import Vocabulary
from skysense_o.vqa import VQAModel
from skysense_o.whole_files import write_text
from skysense_o.workers import Each

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
    """File name for the results of a data set, whose name may be a path.

    >>> file_stem("folder/mine:val")
    'folder_mine_val'
    """
    return re.sub(r"[^\w.@-]+", "_", name).strip("_")


def task_of(name: str) -> str:
    """The task of a data set: segmentation, classification, image-text or vqa."""
    return MetadataCatalog.get(name).get("task", "segmentation")


def able(cfg: CfgNode, task: str) -> str:
    """Why the model of a config cannot do a task; "" if it can."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if task in ABLE.get(architecture, ()) or (task == "vqa" and cfg.MODEL.VQA.WEIGHTS):
        return ""
    cure = "; set MODEL.VQA.WEIGHTS to a model that does" if task == "vqa" else ""
    return f"{architecture} does not support {task}{cure}"


def no_words_for(name: str) -> str:
    """Why the classes of a data set cannot be used as words; "" if they can."""
    meta = MetadataCatalog.get(name)
    if "spec" not in meta.as_dict() or not spec_of(meta.spec).one_class:
        return ""
    rest = load_classes(meta.class_table).classes[0]
    return f"its label 0 is {rest!r}, which cannot be used as a word; tools/evaluate_words.py evaluates it"


def test_sets(cfg: CfgNode) -> tuple[list[str], dict[str, str]]:
    """The data sets to evaluate: those that DATASETS.TEST names, or for "all" every installed data set.

    Returns:
        names of the data sets; and for "all" also data set -> why it is left out, with the command that prepares it.
    """
    if tuple(cfg.DATASETS.TEST) != ALL:
        return list(cfg.DATASETS.TEST), {}
    names, left_out = [], {}
    for name, spec in evaluation_splits():
        try:
            records_of(name, cfg.DATALOADER.SKIP_BAD)
        except FileNotFoundError as error:
            command = spec.prepare or f"get it from {spec.homepage}"
            own_folder = spec.folder in ("", spec.name)  # a shared folder may exist for another set
            left_out[name] = f"{error}" if spec.root.is_dir() and own_folder else f"not found: {command}"
            continue
        reason = able(cfg, spec.task) or no_words_for(name)
        if reason:
            left_out[name] = reason
        else:
            names.append(name)
    return names, left_out


def check_tests(cfg: CfgNode) -> None:
    """Check all parts of an evaluation that need no model.

    Raises:
        ValueError, KeyError, FileNotFoundError: the message has the value, what is permitted, and the cure.
    """
    protocol, names = Protocol.from_config(cfg), test_sets(cfg)[0]
    wrong = sorted(set(cfg.TEST.PREDICTIONS) - set(KINDS))
    if wrong:
        raise ValueError(f"unknown TEST.PREDICTIONS {wrong}: choose among {', '.join(KINDS)}")
    if cfg.TEST.TEMPLATES:
        read_templates(cfg.TEST.TEMPLATES)
    if cfg.MODEL.VQA.WEIGHTS:
        find_weights(cfg.MODEL.VQA.WEIGHTS)
    classes: set[str] = set()
    for name in names:
        records_of(name, cfg.DATALOADER.SKIP_BAD)
        reason = able(cfg, task_of(name)) or no_words_for(name)
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
        raise ValueError(
            f"TEST.CLASS_THRESHOLDS has {unknown}, which is no class of DATASETS.TEST; choose among {sorted(classes)}"
        )


def evaluation_vocabularies(cfg: CfgNode, table: ClassTable, name: str) -> dict[str, Vocabulary]:
    """The vocabularies of TEST.WORDS.

    Returns:
        title -> vocabulary of the classes in the order of their ids.

    Raises:
        FileNotFoundError: TEST.HELDOUT_FILE does not exist.
        ValueError: TEST.WORDS is unknown, or held-out words are missing.
    """
    if cfg.TEST.WORDS == "names":
        return {"names": Vocabulary.of(table.classes)}
    if cfg.TEST.WORDS == "synonyms":
        return {"synonyms": Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)])}
    if cfg.TEST.WORDS == "heldout":
        if not Path(cfg.TEST.HELDOUT_FILE).is_file():
            raise FileNotFoundError(
                f"TEST.HELDOUT_FILE {cfg.TEST.HELDOUT_FILE!r} is not a file: TEST.WORDS heldout needs a JSON of data"
                " set -> class -> words, such as tests/reference/heldout_words.json"
            )
        words = read_json_file(cfg.TEST.HELDOUT_FILE).get(name, {})
        missing = [n for n in table.classes if not words.get(n)]
        if missing:
            raise ValueError(f"{cfg.TEST.HELDOUT_FILE} has no words for {missing} of {name}: give each class some")
        count = min(len(words[n]) for n in table.classes)
        return {f"heldout {k + 1}": Vocabulary.of([words[n][k] for n in table.classes]) for k in range(count)}
    raise ValueError(f"unknown TEST.WORDS {cfg.TEST.WORDS!r}: choose names, synonyms or heldout")


def evaluate_all(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """Evaluate all data sets of DATASETS.TEST during training -> `<data set>/<metric>` -> value."""
    register_folders(cfg.DATASETS.FOLDERS)
    model.text_bank.weights_changed()  # the text tower may now have the weights of the moving average
    numbers: dict[str, float] = {}
    for name in test_sets(cfg)[0]:
        body = evaluate_set(cfg, model, name)
        numbers.update({f"{name}/{key}": value for key, value in body["numbers"].items()})
        if comm.is_main_process():
            path = Path(cfg.OUTPUT_DIR) / "inference" / f"{file_stem(name)}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(without_nan(body), indent=1))
    return numbers


def evaluate_set(
    cfg: CfgNode, model: nn.Module, name: str, vqa_model: VQAModel | None = None, each: Each | None = None
) -> dict:
    """Evaluate one data set; files are written to OUTPUT_DIR/inference.

    Args:
        name: name of the data set.
        vqa_model: the model for questions; None: see `vqa_model_of`.
        each: workers that hold these models as attributes `model` and `vqa_model`; None: the images are evaluated here.

    Returns:
        {"numbers": metric -> 0..1, ...} with more keys by task. Metrics: see `segmentation_metrics` (with several
        vocabularies, the mean over them), `evaluate_pairs` and `evaluate_questions`.
    """
    records, folder = records_of(name, cfg.DATALOADER.SKIP_BAD), Path(cfg.OUTPUT_DIR) / "inference"
    task = task_of(name)
    if task == "segmentation":
        return _segmentation(cfg, model, name, records, folder, _with("model", each))
    if task == "vqa":
        who = vqa_model or vqa_model_of(cfg, model)
        was_training = getattr(who, "training", False)
        if isinstance(who, nn.Module):
            who.eval()
        training, seed = training_questions(cfg, name), max(cfg.SEED, 0)
        numbers, rows = evaluate_questions(who, records, read_record_image, training, seed, _with("vqa_model", each))
        if isinstance(who, nn.Module):
            who.train(was_training)
        if comm.is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{file_stem(name)}_predictions.json", json.dumps(rows, indent=0))
        # The first metric chooses the best checkpoint. Questions that people wrote are harder, so they are preferred.
        first = "model/human" if "model/human" in numbers else "model/overall"
        return {"numbers": {first: numbers[first], **numbers}}
    table = MetadataCatalog.get(name).get("class_table")
    names = load_classes(table).classes if table else records[0].get("names")
    vocabulary = Vocabulary.of(names) if names else None
    if table and cfg.TEST.WORDS == "synonyms":
        (vocabulary,) = evaluation_vocabularies(cfg, load_classes(table), name).values()
    templates = read_templates(cfg.TEST.TEMPLATES) if cfg.TEST.TEMPLATES else cfg.MODEL.TEMPLATES
    figure = folder / f"{file_stem(name)}_confusion"
    encodes = vqa_model is not None and task in ABLE.get(type(vqa_model).__name__, ())
    numbers = evaluate_pairs(
        vqa_model if encodes else model,
        records,
        read_record_image,
        vocabulary,
        templates,
        cfg.INPUT.CROP_SIZE,
        figure,
        cfg.TEST.FLIPS,
        _with("vqa_model" if encodes else "model", each),
    )
    per_class = numbers.pop("per_class", None)
    return {"numbers": numbers, **({"per_class": per_class, "templates": list(templates)} if per_class else {})}


def _with(name: str, each: Each | None) -> Each | None:
    """The workers of `evaluate_set`, for functions that take one of their models."""
    if each is None:
        return None
    return lambda function, items, **options: each(partial(_call_with, name, function), items, **options)


def _call_with(name: str, function: Callable, models: object, item: object) -> object:
    return function(getattr(models, name), item)


def _segmentation(
    cfg: CfgNode, model: nn.Module, name: str, records: list[dict], folder: Path, each: Each | None
) -> dict:
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
    results = evaluate(model, task, asked, each)
    first = next(iter(results.values()))
    numbers = {key: sum(r[key] for r in results.values()) / len(results) for key in MEANS if key in first}
    if len(results) > 1:
        listed = ", ".join(f"{title} {r['mIoU']:.4f}" for title, r in results.items())
        logger.info("%s: mean mIoU %.4f over %s", name, numbers["mIoU"], listed)
    if cfg.TEST.PROMPTS:
        scenes = [partial(evaluation_sample, record, next(iter(vocabularies.values()))) for record in records]
        found = evaluate_prompts(model, scenes, folder / f"{file_stem(name)}_images", each)
        numbers.update({f"prompt_{key}": value for key, value in found.items()})
    words = {title: list(v.phrases) for title, v in asked.items()}
    return {"numbers": numbers, "results": results, "words": words}


def training_questions(cfg: CfgNode, name: str) -> list[dict]:
    """Training questions for the question-only baseline, from the same data set, else from DATASETS.TRAIN."""
    spec = find(name)[0][0]
    names = [f"{spec.name}_train"] if "train" in spec.splits else list(cfg.DATASETS.TRAIN)
    try:
        return [r for n in names for r in records_of(n, cfg.DATALOADER.SKIP_BAD) if "question" in r]
    except FileNotFoundError:
        logger.warning("%s: no training questions, so there is no question-only baseline", name)
        return []


def vqa_model_of(cfg: CfgNode, model: nn.Module) -> VQAModel:
    """The model itself if it answers questions, else the model that MODEL.VQA.WEIGHTS names."""
    return model if hasattr(model, "answer") else load_vqa_model(cfg.MODEL.VQA.WEIGHTS, cfg.MODEL.DEVICE)
