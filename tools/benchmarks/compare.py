"""Compare the speed of backends and precisions. They are called in turn, so that other programs slow all of them alike.

  python tools/benchmark.py compare                                 the shipped model, 512 x 512, 10 classes
  python tools/benchmark.py compare --size 1024 --names 100 --repeats 20
  python tools/benchmark.py compare --config-file configs/skysense_o/skysense_o.yaml --size 384 --names 16 --repeats 5

Each round calls every variant once. The table gives median, minimum and maximum of the wall time and of the CPU time of
all threads in milliseconds, of the speed relative to torch in fp32, the largest difference of the logits from torch in
fp32, and the share of mask cells whose best class differs from torch in fp32. All variants run the exported part of the
model, which computes masks from an image and text embeddings. ONNX Runtime and OpenVINO are compared where they are
installed (extras onnx and openvino). With --config-file, a model with random weights runs in torch, with plain linear
layers and with packed layers (MODEL.TOWER.PACKED).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

from skysense_o.device import has_bf16
from skysense_o.inference.onnx import ImageHalf, export_onnx
from skysense_o.inference.predictor import Predictor
from skysense_o.modeling import Tower
from tools.benchmarks.machine import describe
from tools.benchmarks.model import random_model

REFERENCE = "torch fp32"
Variant = Callable[[Tensor, Tensor], Tensor]
"""image float (1,3,H,W) and text (T,D) -> logits (1,T,h,w)."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", default="mini", metavar="W", help="weights of a model that can be exported (mini)")
    p.add_argument("--config-file", metavar="FILE", help="YAML of a model with random weights, instead of --weights")
    p.add_argument("--size", type=int, default=512, help="side of the image in pixels, a multiple of 32 (default: 512)")
    p.add_argument("--names", type=int, default=10, help="number of classes (default: 10)")
    p.add_argument("--repeats", type=int, default=11, help="number of rounds (default: 11)")
    p.add_argument("--json", metavar="FILE", help="also write the measured numbers to FILE, as JSON")
    return p


def run() -> int:
    args = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.config_file:
            found, tower = random_variants(args.config_file)
            size = tower.input_size or _checked(args.size, tower)
        else:
            predictor = Predictor.from_pretrained(args.weights, "cpu")
            tower = predictor.model.tower
            size = _checked(args.size, tower)
            found = variants(predictor, Path(folder))
        rows = compare(found, *example(tower.dim, size, args.names), args.repeats)
    machine = describe(torch.device("cpu"))
    print(machine)
    print(as_table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


def _checked(size: int, tower: Tower) -> int:
    if size % tower.divisor:
        raise ValueError(f"--size {size}: give a multiple of {tower.divisor}")
    return size


def example(dim: int, size: int, names: int) -> tuple[Tensor, Tensor]:
    """Return a random image (1,3,size,size), float in 0..255, and random text embeddings, unit vectors (names,dim)."""
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, size // 16, size // 16) * 255
    image = F.interpolate(coarse, (size, size), mode="bilinear")
    return image, F.normalize(torch.randn(names, dim), dim=-1)


def variants(predictor: Predictor, folder: Path) -> dict[str, Variant]:
    """Return every variant (backend and precision) that this machine can run, torch in fp32 first.

    The model is exported to `folder` for the variants that need a file.
    """
    threads = torch.get_num_threads()
    found = {REFERENCE: _torch(predictor.model, False)}
    if has_bf16(torch.device("cpu")):
        found["torch bf16"] = _torch(predictor.model, True)
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        print("ONNX Runtime is not compared: pip install -e '.[onnx]'")
        return found
    path = folder / "model.onnx"
    export_onnx(predictor, path)
    found["onnxruntime fp32"] = _onnxruntime(path, threads)
    if find_spec("openvino") is None:
        print("OpenVINO is not compared: pip install -e '.[openvino]'")
        return found
    found["openvino fp32"] = _openvino(path, threads, "f32")
    if has_bf16(torch.device("cpu")):
        found["openvino bf16"] = _openvino(path, threads, "bf16")
    return found


def random_variants(config_file: str) -> tuple[dict[str, Variant], Tower]:
    """Return variants of a model with random weights: each precision, with plain and packed layers; and the tower."""
    found: dict[str, Variant] = {}
    for half in (False, True) if has_bf16(torch.device("cpu")) else (False,):
        for packed in (False, True):
            model = random_model(config_file, half)
            if packed:
                model.tower.pack()
            # Drop the text encoder to save memory: the benchmark gives text embeddings to the model.
            del model.tower.text
            found[f"torch {'bf16' if half else 'fp32'}{' packed' if packed else ''}"] = _torch(model, half)
    return found, model.tower


def _torch(model: nn.Module, autocast: bool) -> Variant:
    half = ImageHalf(model, model.phrase_chunk).eval()

    def call(image: Tensor, text: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return half(image.contiguous(memory_format=torch.channels_last), text)[0].float()

    return call


def _onnxruntime(path: Path, threads: int) -> Variant:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(image: Tensor, text: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"image": image.numpy(), "text": text.numpy()})[0])

    return call


def _openvino(path: Path, threads: int, precision: str) -> Variant:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(str(path), "CPU", settings)

    def call(image: Tensor, text: Tensor) -> Tensor:
        return torch.from_numpy(model({"image": image.numpy(), "text": text.numpy()})["logits"].copy())

    return call


@torch.inference_mode()
def compare(found: dict[str, Variant], image: Tensor, text: Tensor, repeats: int) -> list[dict]:
    """Call all variants in turn, `repeats` times after a warm-up; return one row per variant, as the table shows."""
    logits = {name: call(image, text) for name, call in found.items()}
    wall, cpu = {name: [] for name in found}, {name: [] for name in found}
    for _ in range(repeats):
        for name, call in found.items():
            start = time.perf_counter(), time.process_time()
            call(image, text)
            wall[name].append(1000 * (time.perf_counter() - start[0]))
            cpu[name].append(1000 * (time.process_time() - start[1]))
    return [
        {
            "variant": name,
            "wall_ms": _spread(wall[name]),
            "cpu_ms": _spread(cpu[name]),
            "ratio": _spread([a / b for a, b in zip(wall[REFERENCE], wall[name])]),
            "cpu_ratio": _spread([a / b for a, b in zip(cpu[REFERENCE], cpu[name])]),
            "difference": float((logits[name] - logits[REFERENCE]).abs().max()),
            "changed": float((logits[name].argmax(1) != logits[REFERENCE].argmax(1)).float().mean()),
        }
        for name in found
    ]


def _spread(values: list[float]) -> tuple[float, float, float]:
    """Return the median, minimum and maximum of measured times."""
    return statistics.median(values), min(values), max(values)


def as_table(rows: list[dict]) -> str:
    """Format the rows of `compare` as a table."""
    headers = [
        "variant",
        "wall ms",
        "CPU ms",
        "times as fast, wall",
        "times as fast, CPU",
        "difference of logits",
        "other labels",
    ]
    body = [
        [
            row["variant"],
            *("{:.0f} ({:.0f} to {:.0f})".format(*row[key]) for key in ("wall_ms", "cpu_ms")),
            *("{:.2f} ({:.2f} to {:.2f})".format(*row[key]) for key in ("ratio", "cpu_ratio")),
            f"{row['difference']:.0e}",
            f"{100 * row['changed']:.2g} %",
        ]
        for row in rows
    ]
    return tabulate(body, headers, tablefmt="github")
