#!/usr/bin/env python
"""Train or evaluate SkySense-O.

python tools/train_net.py --config-file configs/mini/finetune.yaml OUTPUT_DIR output/mini
python tools/train_net.py --config-file configs/mini/finetune.yaml --resume OUTPUT_DIR output/mini
python tools/train_net.py --config-file configs/mini/finetune.yaml --eval-only MODEL.WEIGHTS mini
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

import skysense_o.data  # noqa: F401  (registers the data sets)
from skysense_o.config import default_config
from skysense_o.errors import exit_code
from skysense_o.training.run import build_model, evaluate_all, train


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config-file", required=True, metavar="FILE", help="YAML below configs/")
    p.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine (GPUs, or CPUs)")
    p.add_argument("--num-machines", type=int, default=1, metavar="N")
    p.add_argument("--machine-rank", type=int, default=0, metavar="K")
    p.add_argument("--dist-url", default="auto", help="tcp://host:port of machine 0; auto on a single machine")
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    p.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return p


def set_up(args: argparse.Namespace):
    """The config with its changes, checked, and logging started."""
    if any(word.startswith("--") for word in args.opts):
        flag = next(word for word in args.opts if word.startswith("--"))
        raise ValueError(f"{flag!r} stands among the KEY VALUE pairs: put flags before them")
    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"no config at {args.config_file!r}: see configs/")
    cfg = default_config()
    try:
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
    except (KeyError, AssertionError) as error:
        raise ValueError(
            f"config: {error.args[0] if error.args else error}; keys are listed in skysense_o/config.py"
        ) from error
    if Path(cfg.OUTPUT_DIR).is_file():
        raise ValueError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} is a file: give a folder")
    cfg.freeze()
    folder, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("fvcore", "detectron2", "skysense_o"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    if comm.is_main_process():
        (folder / "config.yaml").write_text(cfg.dump())
        logging.getLogger("skysense_o").info("%s\nConfig: %s\n%s", args, folder / "config.yaml", collect_env_info())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    return cfg


def main(args: argparse.Namespace) -> None:
    cfg = set_up(args)
    numbers = evaluate_all(cfg, build_model(cfg)) if args.eval_only else train(cfg, args.resume)
    if comm.is_main_process():
        for name in cfg.DATASETS.TEST:
            keys = ("mIoU", "fwIoU", "pACC")
            values = ",".join(f"{100 * numbers[f'{name}/{key}']:.4f}" for key in keys)
            print(f"{name}: copypaste: {','.join(keys)}\n{name}: copypaste: {values}")


def run() -> None:
    args = parser().parse_args()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))


if __name__ == "__main__":
    sys.exit(exit_code(run))
