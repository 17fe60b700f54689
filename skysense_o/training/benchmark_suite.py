"""Evaluate on all data sets, as `run_eval.sh` does, with one table at the end; finished data sets are skipped."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

from skysense_o.checkpoint import find_weights, weights_hash
from skysense_o.config import model_config
from skysense_o.data.catalog import find, records_of, register_folders
from skysense_o.evaluation.protocol import Protocol
from skysense_o.evaluation.table import without_nan, write_tables
from skysense_o.training.evaluate import WORDS_AND_IMAGES, evaluate_set, file_stem, task_of, test_sets, vqa_model_of
from skysense_o.training.record import git_state, manifest, versions
from skysense_o.training.run import build_model
from skysense_o.training.trainer import peak_memory
from skysense_o.vqa import VQAModel
from skysense_o.whole_files import write_text
from skysense_o.workers import Cluster

logger = logging.getLogger(__name__)
CHANGES_NOTHING = ("IMAGES", "EVAL_PERIOD")


class Models:
    """The models of a config, each of them built when it is first needed."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    @cached_property
    def model(self) -> nn.Module:
        return build_model(self.cfg).eval()

    @cached_property
    def vqa_model(self) -> VQAModel:
        vqa_model = vqa_model_of(self.cfg, self.model)
        return vqa_model.eval() if isinstance(vqa_model, nn.Module) else vqa_model


def evaluate_run(cfg: CfgNode, cluster: Cluster | None = None) -> dict[str, float]:
    """Evaluate a model on each test set and write `inference/<data set>.json` and `results.md`, `.csv`, `.json`.

    A data set that was already evaluated with the same weights, data and protocol is read from its file instead.

    Args:
        cfg: the run's config.
        cluster: a Ray cluster whose workers share the images; None: the processes of this run share them.

    Returns:
        "<data set>/<metric>" -> value.
    """
    register_folders(cfg.DATASETS.FOLDERS)
    names, left_out = test_sets(cfg)
    for name, reason in left_out.items():
        logger.info("left out: %s: %s", name, reason)
    models, each, results = Models(cfg), None, []
    hashes = {
        key: weights_hash(find_weights(value)) if value else None
        for key, value in (("weights", cfg.MODEL.WEIGHTS), ("answerer", cfg.MODEL.VQA.WEIGHTS))
    }
    with ExitStack() as stack:
        for name in names:
            path = Path(cfg.OUTPUT_DIR) / "inference" / f"{file_stem(name)}.json"
            records = records_of(name, cfg.DATALOADER.SKIP_BAD)
            inputs = _inputs(cfg, name, records, hashes)
            done = _read_back(path, inputs["key"])
            if done:
                logger.info("%s: already evaluated with the same weights, data and protocol, read from %s", name, path)
                results.append(done)
                continue
            if cluster and each is None:  # not earlier, because all results may be read from files
                each = stack.enter_context(cluster.each(partial(Models, cfg)))
            needs_answers = task_of(name) == "vqa" or (cfg.MODEL.VQA.WEIGHTS and task_of(name) in WORDS_AND_IMAGES)
            vqa_model = models.vqa_model if needs_answers else None
            model, begun = models.model, time.perf_counter()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            body = evaluate_set(cfg, model, name, vqa_model, each)
            memory = peak_memory(model.tower.pixel_mean.device)
            record = _record(cfg, inputs, time.perf_counter() - begun, memory, cluster)
            facts = {"data_set": name, "row": _row(name), "task": task_of(name), "items": len(records)}
            results.append({**facts, **body, "key": inputs["key"], "record": record})
            if comm.is_main_process():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(without_nan(results[-1]), indent=1))
    if comm.is_main_process():
        text = write_tables(Path(cfg.OUTPUT_DIR), results, left_out)
        logger.info("%s/results.md\n%s", cfg.OUTPUT_DIR, text)
    comm.synchronize()
    return {f"{body['data_set']}/{key}": value for body in results for key, value in body["numbers"].items()}


def _inputs(cfg: CfgNode, name: str, records: list[dict], hashes: dict) -> dict:
    """Everything that a result depends on, and its hash under "key"; the code's version is only in the record."""
    test = {key: value for key, value in cfg.TEST.items() if key not in CHANGES_NOTHING and not isinstance(value, dict)}
    inputs = {
        "weights": cfg.MODEL.WEIGHTS,
        "weights_sha256": hashes["weights"],
        "answerer_sha256": hashes["answerer"] if task_of(name) in ("vqa", *WORDS_AND_IMAGES) else None,
        "data": manifest(records),
        "protocol": {**asdict(Protocol.from_config(cfg)), "reference_compat": cfg.MODEL.REFERENCE_COMPAT},
        "test": test,
        "seed": cfg.SEED,
        "side": cfg.INPUT.CROP_SIZE,
        "templates": Path(cfg.TEST.TEMPLATES).read_text() if cfg.TEST.TEMPLATES else list(cfg.MODEL.TEMPLATES),
        "model": model_config(cfg).dump(),
    }
    text = json.dumps([name, {key: value for key, value in inputs.items() if key != "weights"}], sort_keys=True)
    return {**inputs, "key": hashlib.sha256(text.encode()).hexdigest()}


def _read_back(path: Path, key: str) -> dict | None:
    """The finished result with this key, for all processes; None if there is none."""
    body = None
    if comm.is_main_process() and path.is_file():
        try:
            body = json.loads(path.read_text())
        except ValueError:
            logger.warning("%s is incomplete: evaluating again", path)
        if body is not None and body.get("key") != key:
            logger.info("%s is from other weights, data or protocol: evaluating again", path)
            body = None
    body = comm.all_gather(body)[0]
    if body:  # JSON has null for NaN
        body["numbers"] = {k: float("nan") if v is None else v for k, v in body["numbers"].items()}
    return body


def _record(cfg: CfgNode, inputs: dict, seconds: float, memory: float, cluster: Cluster | None) -> dict:
    """The record to reproduce a result: command, inputs, versions, machine, run time, peak memory in GiB."""
    cuda = torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu"
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.executable).name, *sys.argv],
        **{key: inputs[key] for key in ("weights", "weights_sha256", "answerer_sha256", "data", "protocol", "seed")},
        "words": cfg.TEST.WORDS,
        "git": git_state(),
        "python": platform.python_version(),
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "processes": cluster.workers if cluster else comm.get_world_size(),
            "threads": torch.get_num_threads(),
        },
        "seconds": round(seconds, 1),
        "peak_memory_gib": round(memory, 2),
        "config": cfg.dump(),
    }


def _row(name: str) -> str:
    try:
        return find(name)[0][0].name
    except KeyError:  # the data set is not in our table
        return MetadataCatalog.get(name).name
