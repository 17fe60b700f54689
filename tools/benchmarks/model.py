"""Measure time, floating-point operations and memory of a model by number of classes, batch size and precision.

  python tools/benchmark.py model                                       the shipped model on the default device
  python tools/benchmark.py model --config-file configs/skysense_o/skysense_o.yaml --names 16,100 --size 640
  python tools/benchmark.py model --config-file configs/sam3/sam3.yaml --names 1 --size 1008 --repeats 1

For each part of the model, the table gives seconds, GFLOP, and utilisation (share of this machine's peak speed in
matrix multiplication).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from skysense_o import geometry, meta_arch  # noqa: F401  (fills the registry)
from skysense_o.checkpoint import LARGE, build_with_weights, config_of, find_weights, load_state
from skysense_o.device import choose_device, has_bf16
from skysense_o.modeling import Queries
from skysense_o.sam3 import Sam3
from skysense_o.vocabulary import Vocabulary
from tools.benchmarks.machine import LONG, describe, matrix_peak, memory, reset_peak, seconds

PARTS = ("text", "image", "decoder", "resize")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

PACKED = {torch.ops.mkldnn._linear_pointwise: lambda x, w, *_, out_shape, **__: 2 * math.prod(x) * out_shape[-1]}
"""FLOPs of packed linear layers, which torch's counter does not know."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--weights", default="", metavar="W", help="weights file (default: mini, or random with --config-file)"
    )
    p.add_argument(
        "--config-file", default="", metavar="FILE", help="config of the model, for weights files without a config"
    )
    p.add_argument("--names", default="1,16,100,256", metavar="N,N", help="numbers of classes (default: 1,16,100,256)")
    p.add_argument("--batch", default="1", metavar="N,N", help="batch sizes (default: 1)")
    p.add_argument("--size", type=int, default=512, help="side of the image in pixels (default: 512)")
    p.add_argument(
        "--precision",
        default="",
        metavar="P,P",
        help="precisions, as fp32,bf16 (default: all that the device supports)",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    p.add_argument("--repeats", type=int, default=3, help="number of calls; the median counts (default: 3)")
    p.add_argument("--all-names", action="store_true", help="decode all classes without a limit (MAX_CLASSES 0)")
    p.add_argument("--plain", action="store_true", help="do not pack linear layers (MODEL.TOWER.PACKED False)")
    p.add_argument("--compile", action="store_true", help="compile the image tower with torch.compile")
    p.add_argument("--json", metavar="FILE", help="also write the measured numbers to FILE, as JSON")
    return p


def run() -> None:
    args = parser().parse_args()
    device = choose_device(args.device)
    precisions = args.precision.split(",") if args.precision else ["fp32", *["bf16"] * has_bf16(device)]
    rows, peaks = [], {}
    for precision in precisions:
        peaks[precision] = matrix_peak(device, DTYPES[precision])
        model = _model(args, device, precision == "bf16")
        cases = [(int(b), int(t)) for b in args.batch.split(",") for t in args.names.split(",")]
        for batch, names in tqdm(cases, desc=precision, unit="case"):
            rows.append({"precision": precision, "batch": batch, "names": names})
            rows[-1] |= _case(model, device, precision, batch, names, args, peaks[precision])
        del model
    print(f"{describe(device)}\nmatrix peak: {', '.join(f'{p} {v / 1e9:.0f} GFLOP/s' for p, v in peaks.items())}")
    print(as_table(rows))
    if args.json:
        body = {"machine": describe(device), "matrix_peak": peaks, "size": args.size, "rows": rows}
        Path(args.json).write_text(json.dumps(body, indent=1))


def as_table(rows: list[dict]) -> str:
    """Return a table of time and utilisation per part of the model, and of whole calls with and without cached text."""
    body = []
    for row in rows:
        parts = [f"{row[p]['seconds']:.2f} ({row[p]['gflop']:,.0f}; {100 * row[p]['share']:.0f} %)" for p in PARTS]
        totals = [f"{row['cached']:.2f}", f"{row['first_call']:.2f}", f"{row['batch'] / row['cached']:.2f}"]
        body.append([row["precision"], row["batch"], row["names"], *parts, *totals, f"{row['memory']['peak']:.1f}"])
    headers = ["precision", "batch", "names", *(f"{p}: s (GFLOP; of peak)" for p in PARTS)]
    headers += ["cached s", "first call s", "images/s", "peak GiB"]
    return tabulate(body, headers, tablefmt="github")


def _model(args: argparse.Namespace, device: torch.device, half: bool) -> nn.Module:
    """Build the model with its weights, or with random weights, which give the same speed and memory."""
    weights = args.weights or ("" if args.config_file else "mini")
    if weights:
        path = find_weights(weights)
        cfg = config_of(path, args.config_file)
        model, _ = build_with_weights(cfg, path, half)
    else:
        cfg = config_of(None, args.config_file)
        if cfg.MODEL.META_ARCHITECTURE == "Sam3":
            return random_sam3(cfg.MODEL.SAM3.PHRASE_CHUNK, half).to(device).requires_grad_(False)
        model = random_model(args.config_file, half)
    if args.all_names and hasattr(getattr(model, "sem_seg_head", None), "max_classes"):
        model.sem_seg_head.max_classes = 0
    if cfg.MODEL.TOWER.PACKED and device.type == "cpu" and not args.plain:
        model.tower.pack()
    model = model.to(device, memory_format=torch.channels_last)
    if args.compile:
        model.tower.encode_image = torch.compile(model.tower.encode_image)
    return model.requires_grad_(False)  # without this, FlopCounterMode misses operations


def random_model(config_file: str, half: bool = False) -> nn.Module:
    """Build the model of a config with random weights."""
    cfg = config_of(None, config_file)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).eval()
    load_state(model, random_state(model, half), "random numbers")
    return model.requires_grad_(False)


def random_sam3(phrase_chunk: int, half: bool = False) -> nn.Module:
    """Build SAM 3 without its tracker, with random weights; sizes are the published ones, transformers' defaults."""
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model

    from skysense_o.modeling.sam3_tower import PHRASE_TOKENS, Sam3Tower

    def tokenizer(strings, **_) -> dict[str, torch.Tensor]:
        ids = open_clip.tokenize(strings, PHRASE_TOKENS)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    detector = Sam3Model(Sam3Config()).eval()
    for parameter in detector.parameters() if half else ():
        if parameter.numel() > LARGE:
            parameter.data = parameter.data.to(torch.bfloat16)
    return Sam3(tower=Sam3Tower(detector, Sam3ImageProcessor(), tokenizer, None), phrase_chunk=phrase_chunk)


def random_state(model: nn.Module, half: bool = False) -> dict[str, torch.Tensor]:
    """Return random weights: identity norms, and matrices that repeat one noise block (drawing all takes minutes)."""
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02
    state = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_meta:  # the tower's library has already filled these with random values
            state[name] = tensor
            continue
        count = tensor.numel()
        if tensor.dim() < 2 and tensor.is_floating_point():
            made = torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)
        elif tensor.is_floating_point():
            made = noise.repeat(-(-count // len(noise)))[:count].view(tensor.shape)
        else:
            made = torch.zeros(tensor.shape, dtype=tensor.dtype)
        state[name] = made.to(torch.bfloat16) if half and count > 2**17 else made
    return state


@torch.no_grad()
def _case(model, device, precision: str, batch: int, names: int, args, peak: float) -> dict:
    words = Vocabulary.of([f"thing {i}" for i in range(names)])
    image = torch.randint(0, 256, (3, args.size, args.size), dtype=torch.uint8)
    samples = [{"image": image, "vocabulary": words}] * batch
    half = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def first_call() -> None:
        clear_text_cache(model)
        model.predict(samples, "labels")

    result: dict = {}
    reset_peak(device)
    with half:
        result["first_call"] = seconds(first_call, device, 1)
        if result["first_call"] < LONG:  # the first call was the warm-up
            result["first_call"] = seconds(first_call, device, 1)
        result["cached"] = seconds(lambda: model.predict(samples, "labels"), device, args.repeats)
        result["memory"] = memory(device)

        parts = _sam3_steps if isinstance(model, Sam3) else _steps
        steps = parts(model, image, words, batch)
        for name, step in steps.items():
            with FlopCounterMode(display=False, custom_mapping=PACKED) as counter:
                took = seconds(step, device, 1)
            if took < LONG:
                took = seconds(step, device, args.repeats)
            flops = counter.get_total_flops()
            result[name] = {"seconds": took, "gflop": flops / 1e9, "share": flops / took / peak}
    return result


def clear_text_cache(model: nn.Module) -> None:
    """Empty the text cache, so that words are encoded again."""
    model.text_bank = type(model.text_bank)()


def _steps(model: nn.Module, image: torch.Tensor, words: Vocabulary, batch: int) -> dict[str, Callable[[], object]]:
    """Return the steps of a call of SkySenseO, in order."""
    x, transforms = geometry.prepare([image] * batch, model.tower)
    features = replace(model.tower.encode_image(x), image=x)
    queries = Queries(*model.text_bank(model.tower, [words] * batch, model.templates))
    logits = torch.empty(0)

    def text() -> None:
        clear_text_cache(model)
        model.text_bank(model.tower, [words] * batch, model.templates)

    def decode() -> None:
        nonlocal logits
        logits = model.sem_seg_head(features, queries, model.phrase_chunk)[0]

    def resize() -> None:
        for b, transform in enumerate(transforms):
            transform.restore(logits[b], words.phrase_to_class, len(words))

    return {"text": text, "image": lambda: model.tower.encode_image(x), "decoder": decode, "resize": resize}


def _sam3_steps(model: Sam3, image: torch.Tensor, words: Vocabulary, batch: int) -> dict[str, Callable[[], object]]:
    """Return the steps of a call of SAM 3: the vision encoder runs once per image, all other parts once per phrase.

    Each step reuses the result of the step before, because an image takes minutes on a CPU.
    """
    made: dict[str, object] = {}

    def text() -> None:
        clear_text_cache(model)
        model.read_words(words)

    def encode() -> None:
        made["embedding"], _, made["transforms"] = model.embed_images([image] * batch)

    def decode() -> None:
        made["grids"] = model.class_probabilities(made["embedding"], batch, words)

    def resize() -> None:
        for grid, transform in zip(made["grids"], made["transforms"]):
            transform.restore_probabilities(grid)

    return {"text": text, "image": encode, "decoder": decode, "resize": resize}
