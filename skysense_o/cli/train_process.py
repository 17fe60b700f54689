"""Set up the config, the processes and the log of a training or an evaluation."""

from __future__ import annotations

import logging
import os
import signal
from argparse import Namespace
from multiprocessing import active_children
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

import skysense_o.data  # noqa: F401  (registers the data sets)
from skysense_o.cli.cluster import cluster_of
from skysense_o.config import default_config, merge_file
from skysense_o.cpu_threads import available_cores
from skysense_o.errors import TRACEBACK, is_expected
from skysense_o.evaluation.protocol import protocol_file
from skysense_o.renamed_keys import renamed_key
from skysense_o.training.benchmark_suite import evaluate_run
from skysense_o.training.evaluate import ALL, test_sets
from skysense_o.training.known import fill_answers, take_known
from skysense_o.training.run import check_config, train
from skysense_o.training.trainer import join_processes
from skysense_o.whole_files import write_text


def merge_words(cfg, words: list[str]) -> None:
    """Merge the KEY VALUE pairs of the command line into cfg; a single data set needs no brackets."""
    plain = [f"('{b}',)" if a.startswith("DATASETS.T") and b[:1].isalpha() else b for a, b in zip(["", *words], words)]
    plain[::2] = map(renamed_key, plain[::2])
    try:
        cfg.merge_from_list(plain)
    except (KeyError, AssertionError) as error:
        raise ValueError(
            f"config: {error.args[0] if error.args else error}; keys are listed in skysense_o/config.py"
        ) from error


def _set_up(args: Namespace):
    """Build and check the config from file and command line. Writes nothing."""
    cfg = default_config()
    merge_file(cfg, args.config_file)
    merge_words(cfg, args.opts)
    if cfg.TEST.PROTOCOL:  # KEY VALUE pairs override the protocol's file
        merge_file(cfg, protocol_file(cfg.TEST.PROTOCOL))
        merge_words(cfg, args.opts)
    if args.eval_only and not cfg.DATASETS.TEST:
        cfg.DATASETS.TEST = ALL
    if Path(cfg.OUTPUT_DIR).is_file():
        raise ValueError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} is a file: give a folder")
    if torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu" and args.num_gpus > torch.cuda.device_count():
        raise ValueError(f"--num-gpus {args.num_gpus}: torch sees {torch.cuda.device_count()} GPUs")
    check_config(cfg, args.eval_only, args.resume)
    fill_answers(cfg, args.eval_only)
    if args.eval_only:
        take_known(cfg)
    cfg.freeze()
    return cfg


def _start_logging(cfg, args: Namespace) -> None:
    """Create the output folder, start logging, write the config, set the seed.

    An evaluation writes config_eval.yaml, so that the config of a training in the same folder is kept.
    """
    folder, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("fvcore", "detectron2", "skysense_o"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    logging.raiseExceptions = False  # on a full disk, each line for log.txt would print a traceback
    logging.getLogger("detectron2.engine.train_loop").addFilter(_no_expected_error)
    if comm.is_main_process():
        written = folder / ("config_eval.yaml" if args.eval_only else "config.yaml")
        write_text(written, cfg.dump())
        logging.getLogger("skysense_o").info("%s\nConfig: %s\n%s", args, written, collect_env_info())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)


def _no_expected_error(record: logging.LogRecord) -> bool:
    """A filter that drops the traceback of an error whose message is the last line of the run anyway."""
    error = record.exc_info[1] if record.exc_info else None
    shown = os.environ.get(TRACEBACK) not in (None, "", "unexpected")
    return error is None or not is_expected(error) or shown


def _main(args: Namespace, cfg) -> None:
    if comm.get_local_size() > 1 and not torch.cuda.is_available():
        # More threads than cores would only wait for each other.
        torch.set_num_threads(max(1, available_cores() // comm.get_local_size()))
    _start_logging(cfg, args)
    numbers = evaluate_run(cfg, cluster_of(args)) if args.eval_only else train(cfg, args.resume)
    if comm.is_main_process():
        for name in test_sets(cfg)[0]:
            known = ("mIoU", "fwIoU", "pACC", "top1", "text_R@1", "image_R@1", "model/overall", "model/human")
            keys = [key for key in known if f"{name}/{key}" in numbers]
            values = ",".join(f"{100 * numbers[f'{name}/{key}']:.4f}" for key in keys)
            print(f"{name}: copypaste: {','.join(keys)}\n{name}: copypaste: {values}")


def start_training(args: Namespace) -> int:
    """Start the processes that train or evaluate, or take part if a launcher has started this one."""
    cfg = _set_up(args)
    if join_processes(cfg):  # started by torchrun or accelerate launch
        _main(args, cfg)
        torch.distributed.destroy_process_group()
        return 0
    if args.num_gpus * args.num_machines > 1:
        for number in (signal.SIGINT, signal.SIGTERM):  # the processes finish their step and save
            signal.signal(number, lambda number, frame: [os.kill(p.pid, number) for p in active_children()])
    try:
        launch(_main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args, cfg))
    except ProcessExitedException as error:
        if error.exit_code is None or error.exit_code <= 128:
            raise
        return error.exit_code  # a signal stopped the training, which has saved a checkpoint
    return 0
