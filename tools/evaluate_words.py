#!/usr/bin/env python
"""Evaluate how well a model finds everyday words: roads, roofs, objects in boxes, scene classes.

python tools/evaluate_words.py mini
python tools/evaluate_words.py output/broad/model_final.safetensors --only roads objects --limit 20
python tools/evaluate_words.py output/broad/model_0000999.pth --config-file configs/mini/broad.yaml

The script prints a table; --output also writes results.json, which tools/compare_results.py reads. Missing data sets
are reported and left out. All data sets take about four minutes on one core.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment
from skysense_o.memory_limit import check_memory_limit

set_thread_environment()  # before torch is imported
check_memory_limit()  # before torch is imported, because under too low a limit that import fails with a traceback

from tabulate import tabulate

import skysense_o.data  # noqa: F401  (registers the data sets)
from skysense_o.config import default_config, merge_file
from skysense_o.data.training_facts import training_facts
from skysense_o.errors import exit_code
from skysense_o.evaluation.words import TESTS, Asker
from skysense_o.inference.predictor import Predictor
from skysense_o.training.run import build_model
from skysense_o.whole_files import write_text


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("weights", help="name of shipped weights, or a weights file; a .pth file needs --config-file")
    p.add_argument("--config-file", metavar="FILE", help="YAML file with which a .pth file was trained")
    p.add_argument("--only", nargs="+", choices=sorted(TESTS), default=list(TESTS), help="tests to run (default: all)")
    p.add_argument(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="number of images per data set, spread evenly over it; 0 means all",
    )
    p.add_argument("--output", type=Path, metavar="FOLDER", help="folder in which to write results.json")
    return p


def load_model(weights: str, config_file: str | None):
    """Load a model from shipped weights or a weights file; a run's checkpoint (.pth) also needs the YAML of the run.

    Returns:
        The model, and the least and greatest metres per pixel of its training.
    """
    if not config_file:
        predictor = Predictor.from_pretrained(weights)
        return predictor.model, predictor.known_gsd
    cfg = default_config()
    merge_file(cfg, config_file)
    cfg.MODEL.WEIGHTS, cfg.MODEL.ALLOW_MISSING = weights, []
    return build_model(cfg).eval(), training_facts(cfg.DATASETS.TRAIN)[2]


def run() -> int:
    args = parser().parse_args()
    model, known_gsd = load_model(args.weights, args.config_file)
    asker = Asker(model, args.limit, known_gsd)
    numbers: dict[str, dict[str, float]] = {}
    for name in args.only:
        try:
            found = TESTS[name](asker)
        except FileNotFoundError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        numbers |= found
        rows = [(data_set, what, 100 * value) for data_set, each in found.items() for what, value in each.items()]
        print(tabulate(rows, ["data set", "number", "%"], floatfmt=".1f"), flush=True)
        if args.output:
            results = [{"data_set": data_set, "task": "words", "numbers": each} for data_set, each in numbers.items()]
            body = {"weights": args.weights, "limit": args.limit, "results": results}
            write_text(args.output / "results.json", json.dumps(body, indent=1).replace("NaN", "null"))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
