#!/usr/bin/env python
"""Measure speed and memory.

  python tools/benchmark.py model                                       the shipped model, this machine's device
  python tools/benchmark.py model --config-file configs/skysense_o/skysense_o.yaml --names 16,100 --size 640
  python tools/benchmark.py load --config-file configs/skysense_o/skysense_o.yaml --weights model_final.pth

model: seconds of each part of one call, what it computes (10^9 floating-point operations), the share of this machine's
matrix-product peak that this comes to, and peak memory. load: from a weights file to a model whose every weight was
read. Compare numbers of one run; machines differ, and shared ones are noisy. Each run also writes JSON.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.errors import exit_code

TOPICS = ("model", "load")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    topics = p.add_subparsers(dest="topic", required=True, metavar="|".join(TOPICS))
    for topic in TOPICS:
        module = import_module(f"tools.benchmarks.{topic}")
        options = topics.add_parser(topic, help=module.__doc__.splitlines()[0])
        options.add_argument("--output", default="output/benchmark", metavar="DIR", help="where the JSON goes")
        module.add_options(options)
    return p


def run() -> None:
    args = parser().parse_args()
    results = import_module(f"tools.benchmarks.{args.topic}").measure(args)
    path = Path(args.output) / f"{args.topic}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": sys.argv, **results}, indent=1))
    print(f"-> {path}")


if __name__ == "__main__":
    sys.exit(exit_code(run))
