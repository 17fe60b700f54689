"""Options of train and eval, and what can be checked before torch is imported."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser, Namespace

from skysense_o.cli.cluster import add_cluster_arguments, cluster_of
from skysense_o.shipped_files import find_config


def add_train_arguments(p: ArgumentParser) -> None:
    """Add the options of tools/train_net.py and `skysense-o train`."""
    _add_launch_arguments(p)
    p.add_argument("--resume", action="store_true", help="resume from the last checkpoint in OUTPUT_DIR")
    p.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    add_cluster_arguments(p, "--num-gpus processes")
    _add_changes(p)


def add_eval_arguments(p: ArgumentParser) -> None:
    """Add the options of `skysense-o eval`."""
    _add_launch_arguments(p)
    add_cluster_arguments(p, "--num-gpus processes")
    _add_changes(p)
    p.set_defaults(resume=False, eval_only=True)


def _add_launch_arguments(p: ArgumentParser) -> None:
    p.add_argument("--config-file", required=True, metavar="FILE", help="YAML file below configs/")
    p.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes on this machine, one per GPU (default: 1)"
    )
    p.add_argument("--num-machines", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    p.add_argument(
        "--machine-rank", type=int, default=0, metavar="K", help="index of this machine, from 0 (default: 0)"
    )
    p.add_argument("--dist-url", default="auto", help="tcp://host:port of machine 0 (default: auto, one machine)")


def _add_changes(p: ArgumentParser) -> None:
    p.add_argument("opts", nargs=REMAINDER, metavar="KEY VALUE", help="changes to the config")


def run_train(args: Namespace) -> int:
    """Train or evaluate a model as the options say, and return the exit code."""
    if any(word.startswith("--") for word in args.opts):
        flag = next(word for word in args.opts if word.startswith("--"))
        raise ValueError(f"{flag!r} is among the KEY VALUE pairs: put options before them")
    if cluster_of(args) and not (args.eval_only and args.num_gpus == args.num_machines == 1):
        raise ValueError("--address and --workers are for --eval-only with --num-gpus 1 and --num-machines 1")
    find_config(args.config_file)
    from skysense_o.cli.train_process import start_training

    return start_training(args)
