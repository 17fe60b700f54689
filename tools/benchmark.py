#!/usr/bin/env python
"""Measure speed and memory. `python tools/benchmark.py TOPIC --help` says what a topic takes.

  python tools/benchmark.py model     seconds, operations and memory of each part of a call, by names and batch
  python tools/benchmark.py load      from a weights file to a model whose every weight was read
  python tools/benchmark.py data      how fast training samples are made
  python tools/benchmark.py train     seconds and memory of a training step, by batch, precision and losses
  python tools/benchmark.py scene     a large scene: memory, windows a second, killed and resumed

Compare numbers of one run only: machines differ, and shared ones are noisy.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.errors import exit_code

TOPICS = ("model", "load", "data", "train", "scene")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("topic", choices=TOPICS)
    return p


def run() -> int | None:
    topic = parser().parse_args(sys.argv[1:2]).topic
    sys.argv = [f"{sys.argv[0]} {topic}", *sys.argv[2:]]
    return import_module(f"tools.benchmarks.{topic}").run()


if __name__ == "__main__":
    sys.exit(exit_code(run))
