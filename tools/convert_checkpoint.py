#!/usr/bin/env python
"""Convert published checkpoints to safetensors with this project's parameter names, whole or in part, and back.

  python tools/convert_checkpoint.py model_final.pth skysense_o.safetensors
  python tools/convert_checkpoint.py model_final.pth small.safetensors --inference --dtype bf16
  python tools/convert_checkpoint.py skysense_clip.ckpt image.safetensors --part image
  python tools/convert_checkpoint.py skysense_o.safetensors model_final.pth
  python tools/convert_checkpoint.py sam_vit_b.pth decoder.safetensors --config-file configs/mini/prompts.yaml

Only the mask decoder of a Segment Anything checkpoint is converted. Tensors without a parameter in the model keep their
names, so that converting back is lossless; --inference drops these tensors.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment
from skysense_o.memory_limit import check_memory_limit

set_thread_environment()  # before torch is imported
check_memory_limit()  # before torch is imported, because under too low a limit that import fails with a traceback

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from safetensors.torch import save_file

from skysense_o import meta_arch  # noqa: F401  (fills the registry)
from skysense_o.checkpoint import find_weights, read_config, read_weights, sort_metadata
from skysense_o.config import default_config, merge_file, merge_text, model_config
from skysense_o.errors import exit_code
from skysense_o.published import CLIP_PREFIX, NOT_NEEDED, from_sam, to_ours, to_published
from skysense_o.whole_files import whole

CONFIG = Path(__file__).resolve().parents[1] / "configs/skysense_o/skysense_o.yaml"
PUBLISHED_TOWER = "SkySenseCLIP"
DTYPES = {"as is": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PARTS = {
    "whole": ("",),
    "image": ("tower.visual.", "tower.vision_projection"),
    "text": ("tower.text.", "tower.logit_scale"),
    "decoder": ("sem_seg_head.",),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", help="checkpoint to read: a .pth, .ckpt or .safetensors file, or hf://org/repo/file")
    p.add_argument(
        "target",
        help="file to write: .safetensors with this project's parameter names, or .pth with the published parameter"
        " names, under the key 'model'",
    )
    p.add_argument(
        "--config-file",
        metavar="FILE",
        help="config of the model (default: the one in the source, or else that of the published SkySense-O)",
    )
    p.add_argument("--part", choices=PARTS, default="whole", help="part of the model to write (default: whole)")
    p.add_argument(
        "--dtype",
        choices=DTYPES,
        default="as is",
        help="type of the floating-point tensors to write (default: the types in the source)",
    )
    p.add_argument("--inference", action="store_true", help="drop tensors that only training needs")
    p.add_argument(
        "--trust-checkpoint", action="store_true", help="unpickle old files completely, which executes any code in them"
    )
    return p


def run() -> None:
    args = parser().parse_args()
    target = Path(args.target)
    if target.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{target} ends in {target.suffix!r}: write .safetensors or .pth")
    source = find_weights(args.source)
    cfg = default_config()
    stored = None if args.config_file else read_config(source)
    if stored is None:
        merge_file(cfg, args.config_file or CONFIG)
    else:
        merge_text(cfg, stored, f"in {source}")
    if target.suffix == ".pth" and cfg.MODEL.TOWER.NAME != PUBLISHED_TOWER:
        raise ValueError(f"{source} is not the published model, whose parameter names a .pth has: write .safetensors")
    state = read_weights(source, args.trust_checkpoint)
    if any(name.startswith(CLIP_PREFIX) for name in state):
        with torch.device("meta"):
            model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
        state = to_ours(state, model.state_dict())
    state = {f"sem_seg_head.{name}": tensor for name, tensor in from_sam(state).items()} or state
    if args.inference:
        state = {name: tensor for name, tensor in state.items() if not NOT_NEEDED.search(name)}
    state = {name: tensor for name, tensor in state.items() if name.startswith(PARTS[args.part])}
    if not state:
        raise ValueError(f"{source} has no part {args.part!r} of the published model: choose another part, or whole")
    dtype = DTYPES[args.dtype]
    if dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    with whole(target) as part:
        if target.suffix == ".pth":
            torch.save({"model": to_published(state)}, part)
        else:
            metadata = {"format": "pt", "config": model_config(cfg).dump()}
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, part, metadata=metadata)
            sort_metadata(part)
    print(f"{len(state)} tensors, {target.stat().st_size / 1e6:.1f} MB -> {target}")


if __name__ == "__main__":
    sys.exit(exit_code(run))
