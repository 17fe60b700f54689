#!/usr/bin/env python
"""What a model finds when it is asked by everyday words: roads, roofs, objects in boxes, kinds of scenes.

python tools/evaluate_words.py mini
python tools/evaluate_words.py output/broad/model_final.safetensors --only roads boxes --limit 20
python tools/evaluate_words.py output/broad/model_0000999.pth --config-file configs/mini/broad.yaml

Prints one row a number and writes them all as JSON with --out.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import skysense_o.data  # noqa: F401  (registers the data sets)
from skysense_o.config import default_config, merge_file
from skysense_o.errors import exit_code
from skysense_o.evaluation.words import TESTS, Asker
from skysense_o.inference.predictor import Predictor
from skysense_o.training.run import build_model


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("weights", help="a name of shipped weights, or a file; a .pth needs --config-file")
    p.add_argument("--config-file", metavar="FILE", help="the YAML that a .pth was trained with")
    p.add_argument("--only", nargs="+", choices=sorted(TESTS), default=list(TESTS), help="which tests; all by default")
    p.add_argument(
        "--limit", type=int, default=0, metavar="N", help="so many images of each set, evenly spread; 0: all"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")
    a = p.parse_args()
    if a.config_file:
        cfg = default_config()
        merge_file(cfg, a.config_file)
        cfg.MODEL.WEIGHTS, cfg.MODEL.ALLOW_MISSING = a.weights, []
        model = build_model(cfg).eval()
    else:
        model = Predictor.from_pretrained(a.weights).model
    asker = Asker(model, a.limit)
    numbers = {}
    for name in a.only:
        for key, value in TESTS[name](asker).items():
            numbers[f"{name}/{key}"] = value
            print(f"{name:12s} {key:46s} {value:.3f}", flush=True)
    if a.out:
        a.out.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    sys.exit(exit_code(main))
