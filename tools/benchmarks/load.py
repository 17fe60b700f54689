"""Measure time and memory of loading a weights file until every weight has been read.

python tools/benchmark.py load                                                      the shipped weights
python tools/benchmark.py load --config-file configs/skysense_o/skysense_o.yaml     a random checkpoint of that model
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from tabulate import tabulate

from skysense_o.checkpoint import config_of, find_weights
from skysense_o.device import choose_device
from skysense_o.inference.predictor import Predictor
from skysense_o.published import published_name
from tools.benchmarks.machine import describe, memory, reset_peak
from tools.benchmarks.model import random_state


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--weights", default="", metavar="W", help="weights file (default: mini, or random ones with --config-file)"
    )
    p.add_argument(
        "--config-file", default="", metavar="FILE", help="config of the model, for weights files without a config"
    )
    p.add_argument(
        "--precision", default="fp32", choices=("fp32", "bf16"), help="precision of the loaded model (default: fp32)"
    )
    p.add_argument("--json", metavar="FILE", help="also write the measured numbers to FILE, as JSON")
    return p


def run() -> None:
    args = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.weights or not args.config_file:
            path = find_weights(args.weights or "mini")
        else:
            path = fabricate(args.config_file, Path(folder) / "model_final.pth")
        numbers = measure(path, args.config_file or None, args.precision)
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=1))


def fabricate(config_file: str, path: Path) -> Path:
    """Write a checkpoint with random weights for a config's model, in the published format."""
    cfg = config_of(None, config_file)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    torch.save({"model": {published_name(name): t for name, t in random_state(model).items()}}, path)
    return path


def measure(path: Path, config_file: str | None, precision: str) -> dict:
    """Measure loading after reading the file once: it is then in the page cache, so disk speed has no influence."""
    with open(path, "rb") as file:
        while file.read(2**26):
            pass
    device = choose_device("cpu")
    before = memory(device)
    reset_peak(device)
    start = time.perf_counter()
    predictor = Predictor.from_pretrained(path, "cpu", config_file, precision)
    loaded = time.perf_counter() - start
    for parameter in predictor.model.parameters():
        parameter.detach().sum()
    touched = time.perf_counter() - start
    size = sum(p.numel() * p.element_size() for p in predictor.model.parameters()) / 2**30
    after = memory(device)
    rows = [
        ["seconds to load", f"{loaded:.2f}"],
        ["seconds until every weight has been read", f"{touched:.2f}"],
        ["weights, GiB", f"{size:.2f}"],
        ["peak memory (VmHWM), GiB", f"{after['peak']:.2f} = {after['peak'] / size:.2f} x the weights"],
        ["own memory (RssAnon), GiB", f"{after['anonymous']:.2f} = {after['anonymous'] / size:.2f} x the weights"],
        ["of which before loading (Python and packages), GiB", f"{before['anonymous']:.2f}"],
    ]
    print(describe(device))
    print(tabulate(rows, [f"{path.name}, {precision}", ""], tablefmt="github"))
    return {
        "machine": describe(device),
        "load": loaded,
        "read": touched,
        "weights": size,
        "before": before,
        "after": after,
    }
