#!/usr/bin/env python
"""Measure speed and memory. `python tools/benchmark.py TOPIC --help` lists the options of a topic.

  python tools/benchmark.py model     time, FLOPs and memory of each part of a model, by classes and batch size
  python tools/benchmark.py compare   backends and precisions in turn, with ratios
  python tools/benchmark.py load      time and memory of loading a weights file
  python tools/benchmark.py data      time per training sample, and samples per second by number of workers
  python tools/benchmark.py train     time and memory of a training step, by batch size, precision and losses
  python tools/benchmark.py scene     memory and windows per second for a large scene, and resuming after a kill

Compare only numbers from one run: machines differ, and shared machines are noisy.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

from skysense_o.errors import exit_code

TOPICS = ("model", "compare", "load", "data", "train", "scene")


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
