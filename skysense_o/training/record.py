"""Records of a run: run.json at the start, metrics.png at the end, optionally Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from skysense_o.shipped_files import is_checkout, shipped_file
from skysense_o.whole_files import whole, write_text

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "accelerate",
    "timm",
    "transformers",
    "open_clip_torch",
    "segment-anything",
)
PANELS = {
    "losses": lambda key: key.startswith("loss_") or key == "total_loss",
    "learning rate": lambda key: key == "lr",
    "gradient norm": lambda key: key == "gradient_norm",
    "validation": lambda key: key.endswith(("/mIoU", "/top1", "/R@1", "/prompt_box")) or "/prompt_click" in key,
}


def write_run(folder: Path, config: str, seed: int, data: dict[str, list[dict]], start: int) -> None:
    """Write `run.json`: command, config, git state, versions, data manifests and seed. Resuming adds an entry.

    Args:
        folder: output folder.
        config: YAML of the run.
        seed: seed of the run.
        data: data set -> its records.
        start: first step of this process; above 0 when resuming.
    """
    path = folder / "run.json"
    begun = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from_step": start,
        "command": [Path(sys.executable).name, *sys.argv],
        "processes": comm.get_world_size(),
        "git": git_state(),
        "python": platform.python_version(),
        "versions": versions(),
        "seed": seed,
        "data": {name: manifest(records) for name, records in data.items()},
        "config": config,
    }
    starts = json.loads(path.read_text())["starts"] if start and path.is_file() else []
    write_text(path, json.dumps({"starts": [*starts, begun]}, indent=1))


def manifest(records: list[dict]) -> dict:
    """The number of records, and a SHA-256 over the names and sizes of their files.

    >>> manifest([{"file_name": "a.png"}])["records"]
    1
    """
    digest = hashlib.sha256()
    for record in records:
        for key in ("file_name", "sem_seg_file_name"):
            if key in record:
                file = Path(record[key])
                digest.update(f"{file.name} {file.stat().st_size if file.is_file() else -1}\n".encode())
    return {"records": len(records), "sha256": digest.hexdigest()}


def git_state() -> dict | None:
    """The commit of the code and the files changed since; None if it is not a git checkout."""
    if not is_checkout():  # an installed wheel may lie inside another project's checkout
        return None
    here = shipped_file(".")
    try:
        words = [["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
        commit, changes = (
            subprocess.run(["git", *w], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for w in words
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed": sorted(line[3:] for line in changes.splitlines())}


def versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on; None for a package that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def plot_metrics(folder: Path) -> Path | None:
    """Plot `metrics.json` to `metrics.png`: losses, learning rate, gradient norm, validation.

    Args:
        folder: output folder.

    Returns:
        The path of the figure, or None if there are no metrics.
    """
    from matplotlib.figure import Figure

    path = folder / "metrics.json"
    rows = list(_metrics(path)) if path.is_file() else []
    keys = list(dict.fromkeys(key for row in rows for key in row))
    panels = {title: [k for k in keys if belongs(k)] for title, belongs in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return None
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for name in names:
            points = {
                row["iteration"] + 1: row[name] for row in rows if name in row
            }  # a resumed run may have two rows for a step: the later row counts
            axes.plot(*zip(*sorted(points.items())), label=name, marker="." if len(points) < 30 else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with whole(folder / "metrics.png") as part:
        figure.savefig(part, format="png", dpi=110)
    return folder / "metrics.png"


def _metrics(path: Path) -> Iterator[dict]:
    """The lines of `metrics.json`, without those that a killed run or a full disk left incomplete."""
    for line in path.read_text().splitlines():
        with suppress(ValueError):
            yield json.loads(line)


class WandbWriter(EventWriter):
    """Writes scalars to a Weights & Biases project; offline unless WANDB_API_KEY or WANDB_MODE is set."""

    def __init__(self, project: str, folder: str, config: dict) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("SOLVER.WANDB needs the package wandb: pip install 'wandb>=0.19,<1'") from error
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = wandb.init(project=project, dir=folder, config=config, mode=mode, resume="allow")
        self._written = -1

    def write(self) -> None:
        storage = get_event_storage()
        new = {k: v for k, (v, step) in storage.latest_with_smoothing_hint(20).items() if step > self._written}
        if new:
            self._run.log(new, step=storage.iter)
            self._written = storage.iter

    def close(self) -> None:
        self._run.finish()
