#!/usr/bin/env python
"""Average the weights of a model before and after a fine-tuning, which often keeps the strengths of both.

  python tools/average_weights.py output/outlines/model_final.safetensors output/broad_long/model_final.safetensors \\
      output/average.safetensors --share 0.6

The result is share x the first file + (1 - share) x the second file (Wortsman et al., Robust fine-tuning of zero-shot
models, CVPR 2022). Averaging only makes sense if one of the models was trained from the other. The config, and tensors
that only the first file has, are taken from the first file. The calibration of presence is dropped, because it was
measured with other weights: run tools/calibrate_presence.py afterwards.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment
from skysense_o.memory_limit import check_memory_limit

set_thread_environment()  # before torch is imported
check_memory_limit()  # before torch is imported, because under too low a limit that import fails with a traceback

import yaml
from safetensors.torch import save_file

from skysense_o.checkpoint import find_weights, read_config, read_weights, sort_metadata
from skysense_o.errors import exit_code
from skysense_o.whole_files import whole


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("first", help="weights after the fine-tuning: a file, or the name of shipped weights")
    p.add_argument("second", help="weights before the fine-tuning: a file, or the name of shipped weights")
    p.add_argument("target", type=Path, help="the .safetensors file to write")
    p.add_argument("--share", type=float, default=0.5, metavar="S", help="share of the first file, 0..1 (default: 0.5)")
    return p


def run() -> None:
    args = parser().parse_args()
    if not 0 <= args.share <= 1:
        raise ValueError(f"--share {args.share} is out of range: 0 to 1")
    if args.target.suffix != ".safetensors":
        raise ValueError(f"{args.target} ends in {args.target.suffix!r}: write .safetensors")
    first, second = find_weights(args.first), find_weights(args.second)
    ours, theirs, config = read_weights(first), read_weights(second), read_config(first)
    other = [name for name, tensor in ours.items() if name in theirs and tensor.shape != theirs[name].shape]
    shared = [name for name in ours if name in theirs and ours[name].is_floating_point()]
    if other or not shared:
        what = f"{other[0]} has another shape" if other else "no tensor has the same name"
        raise ValueError(f"{first} and {second} cannot be averaged, because {what}: give two files of one model")
    average = {
        name: (args.share * ours[name].float() + (1 - args.share) * theirs[name].float()).to(ours[name].dtype)
        for name in shared
    }
    state = {name: tensor.contiguous() for name, tensor in (ours | average).items()}
    with whole(args.target) as part:
        save_file(state, part, metadata={"format": "pt", **({"config": _uncalibrated(config)} if config else {})})
        sort_metadata(part)
    print(f"{len(shared)} of {len(ours)} tensors averaged -> {args.target}")


def _uncalibrated(config: str) -> str:
    """The YAML of a model without MODEL.KNOWN.PRESENCE."""
    body = yaml.safe_load(config)
    body.get("MODEL", {}).get("KNOWN", {}).pop("PRESENCE", None)
    return yaml.safe_dump(body)


if __name__ == "__main__":
    sys.exit(exit_code(run))
