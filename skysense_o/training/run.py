"""Train a model as its config says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from torch import nn

from skysense_o import meta_arch, pretraining, sam3  # noqa: F401  (fill the registry)
from skysense_o.checkpoint import find_weights, load_sam_decoder, load_weights
from skysense_o.config import model_config
from skysense_o.data.caption_mapper import CaptionMapper
from skysense_o.data.catalog import records_of, register_folders
from skysense_o.data.loader import training_loader
from skysense_o.data.mapper import TrainingMapper
from skysense_o.data.mixed_mapper import MixedMapper
from skysense_o.data.mixture import MixedSamples, check_weights
from skysense_o.data.question_mapper import QuestionMapper, asks_how_many, image_key, read_points
from skysense_o.device import choose_device
from skysense_o.run_lock import run_lock
from skysense_o.training.checkpointer import RunCheckpointer, ShardedCheckpointer
from skysense_o.training.ema import MovingAverage
from skysense_o.training.evaluate import check_tests, evaluate_all, test_sets
from skysense_o.training.known import fill_known
from skysense_o.training.optimizer import build_optimizer, learning_rate
from skysense_o.training.record import WandbWriter, plot_metrics, write_run
from skysense_o.training.sharding import check_sharding, shard, whole_weights
from skysense_o.training.stopping import StopOnSignal, Stopped
from skysense_o.training.trainer import FollowWeights, SaveCheckpoints, Trainer, Validate, build_accelerator
from skysense_o.weight_paths import is_sharded

logger = logging.getLogger(__name__)
LOG_PERIOD = 20
MAPPERS = {"mixed": MixedMapper, "labels": TrainingMapper, "captions": CaptionMapper, "questions": QuestionMapper}
# For each mapper, keys of records; a record must have at least one of these keys.
NEEDS = {
    "mixed": ("sem_seg_file_name", "boxes", "points", "shapes", "label"),
    "labels": ("sem_seg_file_name",),
    "captions": ("captions", "label"),
    "questions": ("answer",),
}


def check_config(cfg: CfgNode, eval_only: bool, resume: bool) -> None:
    """Check a config before anything is built or written, so that a wrong test set does not end a run after hours.

    Raises:
        ValueError, KeyError, FileNotFoundError: the message has the value, what is permitted, and the cure.
    """
    clip, head = cfg.SOLVER.CLIP_GRADIENTS, cfg.MODEL.SEM_SEG_HEAD
    if clip.ENABLED and (clip.CLIP_TYPE, clip.NORM_TYPE) != ("full_model", 2.0):
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {clip.CLIP_TYPE!r}: use full_model with NORM_TYPE 2.0")
    if cfg.SOLVER.AMP.ENABLED:
        raise ValueError("SOLVER.AMP.ENABLED is Detectron2's switch for CUDA: use SOLVER.PRECISION (bf16, fp16, auto)")
    loss = cfg.MODEL.LOSS
    words = any((loss.BCE, loss.FOCAL, loss.CROSS_ENTROPY, loss.DICE))  # False if only clicks and boxes are trained
    if head.NAME == "SAMMaskHead" and head.PRESENCE and words and not loss.PRESENCE and not eval_only:
        raise ValueError("MODEL.LOSS.PRESENCE 0 leaves the presence head untrained: set SEM_SEG_HEAD.PRESENCE False")
    if head.PROMPTS and not ((loss.PROMPT or loss.CORRECTION) and cfg.INPUT.PROMPTS) and not eval_only:
        raise ValueError(
            "SEM_SEG_HEAD.PROMPTS is trained by MODEL.LOSS.PROMPT or CORRECTION, and INPUT.PROMPTS: set both above 0"
        )
    if loss.CORRECTION and not (head.NAME == "SAMMaskHead" and head.PROMPTS and head.CLASS_MAPS):
        raise ValueError("MODEL.LOSS.CORRECTION needs SAMMaskHead with SEM_SEG_HEAD.PROMPTS and CLASS_MAPS True")
    if loss.PROMPT and not (head.NAME == "SAMMaskHead" and head.PROMPTS):
        raise ValueError("MODEL.LOSS.PROMPT needs SEM_SEG_HEAD.NAME SAMMaskHead with SEM_SEG_HEAD.PROMPTS True")
    if head.SAM_WEIGHTS and head.NAME != "SAMMaskHead":
        raise ValueError(f"SEM_SEG_HEAD.SAM_WEIGHTS are for SAMMaskHead, not for {head.NAME}: leave them out")
    for weights in filter(None, (cfg.MODEL.WEIGHTS, head.SAM_WEIGHTS)):
        find_weights(weights)
    choose_device(cfg.MODEL.DEVICE)
    register_folders(cfg.DATASETS.FOLDERS)
    if cfg.INPUT.POINTS and cfg.INPUT.MAPPER != "questions" and not eval_only:
        raise ValueError(f"INPUT.POINTS are for INPUT.MAPPER 'questions', not {cfg.INPUT.MAPPER!r}: leave them out")
    if cfg.INPUT.MAPPER not in MAPPERS:
        raise ValueError(f"unknown INPUT.MAPPER {cfg.INPUT.MAPPER!r}: choose one of {', '.join(MAPPERS)}")
    loss = cfg.MODEL.LOSS
    if max(loss.BAGS, loss.CANDIDATES, loss.CAPTIONS) > 0 and cfg.INPUT.MAPPER != "mixed" and not eval_only:
        raise ValueError(
            f"MODEL.LOSS.BAGS, CANDIDATES and CAPTIONS are for INPUT.MAPPER 'mixed', not {cfg.INPUT.MAPPER!r}: set 0.0"
        )
    if cfg.DATASETS.WEIGHTS and not eval_only:
        check_weights(cfg.DATASETS.WEIGHTS, len(cfg.DATASETS.TRAIN))
    needs, training_sets = NEEDS[cfg.INPUT.MAPPER], [] if eval_only else load_records(cfg)
    for name, records in zip(cfg.DATASETS.TRAIN, training_sets):
        if not any(key in records[0] for key in needs):
            raise ValueError(
                f"DATASETS.TRAIN {name!r} has no {' or '.join(map(repr, needs))}, which INPUT.MAPPER"
                f" {cfg.INPUT.MAPPER!r} trains on; it has {', '.join(records[0])}"
            )
    if cfg.INPUT.POINTS and not eval_only:
        _check_points(cfg, [record for records in training_sets for record in records])
    check_tests(cfg)
    if resume and not (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
        raise FileNotFoundError(
            f"nothing to resume in OUTPUT_DIR {cfg.OUTPUT_DIR!r}: it has no last_checkpoint; start without --resume"
        )


def load_records(cfg: CfgNode) -> list[list[dict]]:
    """The records of each data set of DATASETS.TRAIN; DATALOADER.SKIP_BAD leaves out records with missing files."""
    return [records_of(name, cfg.DATALOADER.SKIP_BAD) for name in cfg.DATASETS.TRAIN]


def _check_points(cfg: CfgNode, records: Sequence[dict]) -> None:
    """Raise ValueError if no training question is about an annotated image."""
    marked = read_points(cfg.INPUT.POINTS)
    images = [image_key(record["file_name"]) for record in records if asks_how_many(record["question"])]
    if marked.keys().isdisjoint(images):
        raise ValueError(
            f"INPUT.POINTS {cfg.INPUT.POINTS!r} has no image of the 'how many' questions of DATASETS.TRAIN"
            f" {tuple(cfg.DATASETS.TRAIN)}: the file has {list(marked)[:2]}, the questions have {images[:2]}; folder"
            " and stem must agree"
        )


def build_model(cfg: CfgNode, allow_missing: Sequence[str] = ()) -> nn.Module:
    """Build the model of a config on its device, and load MODEL.WEIGHTS if there are any.

    Args:
        allow_missing: patterns of parameters that may be missing in the weights and start from scratch (training only).
    """
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    if cfg.MODEL.SEM_SEG_HEAD.SAM_WEIGHTS:
        path = find_weights(cfg.MODEL.SEM_SEG_HEAD.SAM_WEIGHTS)
        logger.info("%s: %s", path, load_sam_decoder(model.sem_seg_head, path))
    path = find_weights(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    if path and (path.is_file() or is_sharded(path)):  # another folder was read by the model itself
        logger.info("%s: %s", path, load_weights(model, path, allow_missing, cfg.MODEL.IGNORE_UNEXPECTED))
    return model.to(choose_device(cfg.MODEL.DEVICE), memory_format=torch.channels_last)


def train(cfg: CfgNode, resume: bool) -> dict[str, float]:
    """Train as the config says -> metrics of the last evaluation.

    Raises:
        OSError: another training writes into OUTPUT_DIR.
    """
    folder = Path(cfg.OUTPUT_DIR)
    lock = run_lock(folder / ".lock", folder, "give another OUTPUT_DIR") if comm.is_main_process() else nullcontext()
    with lock:
        return _train(cfg, resume)


def _train(cfg: CfgNode, resume: bool) -> dict[str, float]:
    sharded = cfg.SOLVER.SHARD
    if sharded:
        check_sharding(comm.get_world_size(), cfg.SOLVER.PRECISION)
    register_folders(cfg.DATASETS.FOLDERS)  # `check_config` may have run in another process
    training_sets = load_records(cfg)
    fill_known(cfg)
    accelerator = build_accelerator(cfg)
    model = build_model(cfg, cfg.MODEL.ALLOW_MISSING)
    if sharded:
        shard(model, accelerator.device)
    optimizer = build_optimizer(model, cfg.SOLVER.GROUPS, learning_rate(cfg), cfg.SOLVER.LAYER_DECAY)
    scheduler = build_lr_scheduler(cfg, optimizer)
    ema = MovingAverage(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None
    saved = {"optimizer": optimizer, "scheduler": scheduler}
    if accelerator.scaler is not None:
        saved["scaler"] = accelerator.scaler
    kind, kept = ShardedCheckpointer if sharded else RunCheckpointer, cfg.SOLVER.CHECKPOINTS_KEPT
    checkpointer = kind(model, cfg.OUTPUT_DIR, model_config(cfg).dump(), ema, kept, **saved)
    start, seed = checkpointer.resume() if resume else 0, max(cfg.SEED, 0)
    if comm.is_main_process():
        data = dict(zip(cfg.DATASETS.TRAIN, training_sets))
        data |= {name: records_of(name, cfg.DATALOADER.SKIP_BAD) for name in test_sets(cfg)[0]}
        write_run(Path(cfg.OUTPUT_DIR), cfg.dump(), seed, data, start)
    if start >= cfg.SOLVER.MAX_ITER:
        logger.info("All %d steps are done: nothing to train, only to evaluate", cfg.SOLVER.MAX_ITER)
        with ema.applied() if ema else nullcontext(), whole_weights(model):
            return evaluate_all(cfg, model)
    prepared = accelerator.prepare(optimizer)
    wrapped = model if sharded else accelerator.prepare(model)
    mapper, skip = MAPPERS[cfg.INPUT.MAPPER](cfg), cfg.DATALOADER.SKIP_BAD
    samples = MixedSamples(training_sets, cfg.DATASETS.WEIGHTS, mapper, seed, skip) if cfg.DATASETS.WEIGHTS else None
    loader = training_loader(
        [record for records in training_sets for record in records],
        mapper,
        samples=samples,
        batch=micro_batch(cfg),
        start=start * cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        workers=cfg.DATALOADER.NUM_WORKERS,
        skip_bad=cfg.DATALOADER.SKIP_BAD,
    )
    clip = cfg.SOLVER.CLIP_GRADIENTS
    trainer = Trainer(
        wrapped, loader, prepared, accelerator, clip.CLIP_VALUE if clip.ENABLED else None, seed, cfg.OUTPUT_DIR
    )
    numbers: dict[str, float] = {}
    trainer.register_hooks(_hooks(cfg, model, prepared, scheduler, checkpointer, numbers))
    trainer.register_hooks(
        [StopOnSignal(checkpointer, accelerator.device)]
    )  # the last hook, so that the others have written the metrics before the run ends
    wrapped.train()
    stopped = None
    try:
        trainer.train(start, cfg.SOLVER.MAX_ITER)
    except Stopped as error:
        stopped = error
    finally:
        if comm.is_main_process():
            plot_metrics(Path(cfg.OUTPUT_DIR))
    comm.synchronize()  # a launcher kills the other processes as soon as one process ends
    if stopped:
        raise stopped
    return numbers


def _hooks(cfg, model, optimizer, scheduler, checkpointer: RunCheckpointer, numbers: dict[str, float]) -> list:
    def validation() -> dict[str, float]:
        with whole_weights(model):
            numbers.update(evaluate_all(cfg, model))
        return numbers

    every = [
        hooks.IterationTimer(),
        hooks.LRScheduler(optimizer.optimizer, scheduler),
        FollowWeights(checkpointer.ema),
        SaveCheckpoints(cfg.SOLVER.CHECKPOINT_PERIOD, checkpointer),  # saved before the evaluation, which may fail
        Validate(cfg.TEST.EVAL_PERIOD, validation, checkpointer),
    ]
    if comm.is_main_process():
        folder, period = cfg.OUTPUT_DIR, max(4, min(LOG_PERIOD, cfg.SOLVER.MAX_ITER // 5))  # short runs: 5 lines
        writers: list[Callable] = [
            CommonMetricPrinter(cfg.SOLVER.MAX_ITER, window_size=period),
            JSONWriter(f"{folder}/metrics.json", window_size=period),
            TensorboardXWriter(folder, window_size=period),
        ]
        if cfg.SOLVER.WANDB:
            writers.append(WandbWriter(cfg.SOLVER.WANDB, folder, yaml.safe_load(cfg.dump())))
        every.append(hooks.PeriodicWriter(writers, period=period))
    return every


def micro_batch(cfg: CfgNode) -> int:
    """Images per process and forward pass; IMS_PER_BATCH is the total per step."""
    parts = comm.get_world_size() * cfg.SOLVER.ACCUMULATION
    if cfg.SOLVER.IMS_PER_BATCH % parts:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide by {comm.get_world_size()} processes"
            f" x SOLVER.ACCUMULATION {cfg.SOLVER.ACCUMULATION}"
        )
    return cfg.SOLVER.IMS_PER_BATCH // parts
