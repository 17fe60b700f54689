"""What a run takes from the weights it starts from: facts of their training, and the answers of a question head."""

from __future__ import annotations

import re

from detectron2.config import CfgNode

from skysense_o.checkpoint import find_weights, read_config
from skysense_o.config import default_config, merge_text
from skysense_o.data.catalog import records_of
from skysense_o.data.concepts import kind_entries
from skysense_o.data.training_facts import training_facts
from skysense_o.vqa import normalise


def _stored_config(cfg: CfgNode) -> CfgNode | None:
    """The config that the starting weights contain; None if they contain none."""
    path, stored = find_weights(cfg.MODEL.WEIGHTS), default_config()
    text = read_config(path)
    if text:
        merge_text(stored, text, f"in {path}")
    return stored if text else None


def fill_answers(cfg: CfgNode, eval_only: bool) -> None:
    """Fill MODEL.VQA.ANSWERS of an EmbeddedVQA: from its weights, or from the training set if its head is new."""
    if cfg.MODEL.META_ARCHITECTURE != "EmbeddedVQA" or cfg.MODEL.VQA.ANSWERS:
        return
    new_head = any(re.search(pattern, "head.5.weight") for pattern in cfg.MODEL.ALLOW_MISSING)
    if cfg.MODEL.WEIGHTS and (eval_only or not new_head):
        stored = _stored_config(cfg)
        if stored is not None and stored.MODEL.VQA.ANSWERS:
            cfg.MODEL.VQA.ANSWERS = stored.MODEL.VQA.ANSWERS
            return
    sets = [records_of(name, cfg.DATALOADER.SKIP_BAD) for name in cfg.DATASETS.TRAIN]
    cfg.MODEL.VQA.ANSWERS = sorted({normalise(record["answer"]) for records in sets for record in records})


def fill_known(cfg: CfgNode) -> None:
    """Set MODEL.KNOWN to the facts of the starting weights and, if this training has words, of its data sets."""
    config = _stored_config(cfg) if cfg.MODEL.WEIGHTS else None
    stored = dict(config.MODEL.KNOWN) if config is not None else {}
    loss = cfg.MODEL.LOSS
    words = any((loss.BCE, loss.FOCAL, loss.CROSS_ENTROPY, loss.DICE)) and cfg.MODEL.META_ARCHITECTURE == "SkySenseO"
    classes, sets, gsd = training_facts(cfg.DATASETS.TRAIN) if words else ([], [], [])
    known, frozen = cfg.MODEL.KNOWN, cfg.is_frozen()
    cfg.defrost()
    known.CLASSES = sorted({*stored.get("CLASSES", []), *classes})
    known.DATASETS = list(dict.fromkeys((*stored.get("DATASETS", []), *sets)))
    metres = [*stored.get("GSD", []), *gsd]
    known.GSD = [min(metres), max(metres)] if metres else []
    known.KINDS = kind_entries() if words and cfg.INPUT.MAPPER == "mixed" else stored.get("KINDS", [])
    known.BLEND = stored.get("BLEND", -1.0) if known.BLEND == -1 else known.BLEND
    known.PRESENCE = []  # was measured with the starting weights, which this training changes
    if frozen:
        cfg.freeze()


def take_known(cfg: CfgNode) -> None:
    """For an evaluation: take MODEL.KNOWN of the weights, so that they are evaluated as `Predictor` runs them.

    Keys that the config sets itself are kept.
    """
    if cfg.MODEL.META_ARCHITECTURE == "SkySenseO" and cfg.MODEL.WEIGHTS:
        stored, unset = _stored_config(cfg), default_config().MODEL.KNOWN
        for key, value in (stored.MODEL.KNOWN if stored is not None else {}).items():
            if cfg.MODEL.KNOWN[key] == unset[key]:
                cfg.MODEL.KNOWN[key] = value
