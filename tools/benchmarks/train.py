"""Measure time and memory of training steps; each batch size, precision and set of losses gives one row.

Each row is measured in its own process, so that peak memory is not shared.

python tools/benchmark.py train --config-file configs/mini/finetune.yaml --batch 1,8 --precision no,bf16
python tools/benchmark.py train --config-file configs/skysense_o/finetune.yaml --names 16 --precision no,bf16 \\
    --losses bce,bce+region+vision_centric MODEL.TOWER.RECOMPUTE True
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate

from skysense_o.config import default_config, merge_file
from skysense_o.objective import TERMS
from skysense_o.training.optimizer import build_optimizer
from skysense_o.training.run import build_model
from skysense_o.training.trainer import build_accelerator, peak_memory
from skysense_o.vocabulary import Vocabulary

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmark.py"
LEFT_TO_CONFIG = "config"
LOSSES = f"loss terms joined by +, with the config's weight or else 0.4: {', '.join(TERMS)}"
RESULTS = ("samples/s", "s/step", "forward+backward s", "peak GiB", "TFLOP/s", "of peak", "loss")
COLUMNS = ("batch", "precision", "losses", *RESULTS)


def _words(text: str) -> list[str]:
    return text.split(",")


def _integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config-file", required=True, metavar="FILE", help="YAML file below configs/")
    p.add_argument("--batch", type=_integers, default=[1], metavar="B,B", help="images per step (default: 1)")
    p.add_argument(
        "--precision", type=_words, default=["no"], metavar="P,P", help="no (float32), bf16, fp16 (default: no)"
    )
    p.add_argument("--losses", type=_words, default=[LEFT_TO_CONFIG], metavar="A+B,A", help=LOSSES)
    p.add_argument("--names", type=int, default=16, metavar="T", help="classes per image (default: 16)")
    p.add_argument("--size", type=int, metavar="PIXELS", help="side of an image (default: INPUT.CROP_SIZE)")
    p.add_argument("--steps", type=int, default=3, metavar="N", help="timed steps, after one warm-up step (default: 3)")
    p.add_argument(
        "--peak", type=float, metavar="TFLOPS", help="peak speed of the processor, to report the utilisation"
    )
    p.add_argument("--output", metavar="FILE", help="also write the rows as JSON")
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return p


def config(args: argparse.Namespace, precision: str, losses: str):
    cfg = default_config()
    merge_file(cfg, args.config_file)
    cfg.merge_from_list([*args.opts, "SOLVER.PRECISION", precision])
    if losses != LEFT_TO_CONFIG:
        chosen = losses.split("+")
        unknown = sorted(set(chosen) - set(TERMS))
        if unknown:
            raise ValueError(f"unknown losses {unknown}: choose among {', '.join(TERMS)}")
        for term in TERMS:
            key = term.upper()
            cfg.MODEL.LOSS[key] = (cfg.MODEL.LOSS[key] or 0.4) if term in chosen else 0.0
        cfg.MODEL.SEM_SEG_HEAD.PRESENCE = "presence" in chosen
    return cfg


def measure(cfg, args: argparse.Namespace, batch: int) -> dict:
    """Measure one row on a random image with `names` classes in bands, so that no data set is needed."""
    torch.manual_seed(0)
    accelerator = build_accelerator(cfg)
    model = build_model(cfg, cfg.MODEL.ALLOW_MISSING).train()
    optimizer = build_optimizer(model, cfg.SOLVER.GROUPS, cfg.SOLVER.BASE_LR, cfg.SOLVER.LAYER_DECAY)
    side = args.size or cfg.INPUT.CROP_SIZE
    bands = (torch.arange(side) * args.names // side).expand(side, side)
    sample = {
        "image": torch.randint(0, 256, (3, side, side), dtype=torch.uint8),
        "sem_seg": bands.clone(),
        "vocabulary": Vocabulary.of([f"thing {i}" for i in range(args.names)]),
        "visual_similarity": torch.eye(args.names),
    }
    model, optimizer = accelerator.prepare(model, optimizer)
    whole, half, loss = [], [], 0.0
    for step in range(args.steps + 1):
        begun = time.perf_counter()
        with accelerator.autocast():
            losses = model([sample] * batch)
        accelerator.backward(sum(losses.values()))
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        middle = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        if step:
            half.append(middle - begun)
            whole.append(time.perf_counter() - begun)
        else:
            # Losses are taken before the first update, so that precisions can be compared.
            loss = float(sum(losses.values()))
    seconds, flops = statistics.median(whole), _flops(model, [sample] * batch) if args.peak else None
    speed = flops / statistics.median(half) / 1e12 if flops else None
    return {
        "batch": batch,
        "precision": cfg.SOLVER.PRECISION,
        "samples/s": batch / seconds,
        "s/step": seconds,
        "forward+backward s": statistics.median(half),
        "peak GiB": peak_memory(accelerator.device),
        "TFLOP/s": speed,
        "of peak": speed / args.peak if speed else None,
        "loss": loss,
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
    }


def _flops(model, samples) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        sum(model(samples).values()).backward()
    return counter.get_total_flops()


def alone(args: argparse.Namespace, batch: int, precision: str, losses: str) -> dict:
    """Measure one combination in a separate process; return its row."""
    with tempfile.TemporaryDirectory() as folder:
        row = Path(folder) / "row.json"
        words = ["--config-file", args.config_file, "--batch", batch, "--precision", precision, "--losses", losses]
        words += ["--names", args.names, "--steps", args.steps, "--output", row]
        words += ["--size", args.size] if args.size else []
        words += ["--peak", args.peak] if args.peak else []
        line = [sys.executable, str(BENCHMARK), "train", *map(str, words), *args.opts]
        done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["the process was killed: out of memory?"])[-1]
            raise ValueError(f"batch {batch}, {precision}, {losses}: {reason}")
        return json.loads(row.read_text())[0]


def run() -> int:
    args = parser().parse_args()
    for losses in args.losses:
        config(args, args.precision[0], losses)  # check all names before measuring
    combinations = list(itertools.product(args.batch, args.precision, args.losses))
    rows = []
    for batch, precision, losses in combinations:
        if len(combinations) == 1:
            row = measure(config(args, precision, losses), args, batch)
        else:
            row = alone(args, batch, precision, losses)
        rows.append({**row, "losses": losses})
        print(f"batch {batch}, {precision}, {losses}: {row['samples/s']:.3f} samples/s", file=sys.stderr)
    columns = [c for c in COLUMNS if any(row[c] is not None for row in rows)]
    print(tabulate([[row[c] for c in columns] for row in rows], columns, floatfmt=".3f"))
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1))
    return 0
