"""Segment many scenes on many machines with Ray Data: one task per scene, one `Predictor` per worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from skysense_o.errors import file_error, install_extra
from skysense_o.image_io import printable
from skysense_o.scenes.options import SceneOptions, SceneOutputs
from skysense_o.vocabulary import Vocabulary

OBJECT_STORE = 512 * 2**20
"""Bytes; small, because only paths and tables pass between workers."""


class SceneWorker:
    """Loads the model once per worker, then segments one scene per call."""

    def __init__(
        self, weights: str, device: str, vocabulary: Vocabulary, outputs: SceneOutputs, options: SceneOptions
    ) -> None:
        from skysense_o.inference.predictor import Predictor

        self.predictor = Predictor.from_pretrained(weights, device)
        self.vocabulary, self.outputs, self.options = vocabulary, outputs, options

    def __call__(self, row: dict) -> dict:
        """Add "written", a list of paths, and "error", a message or "", to a row with "path" and "stem"."""
        from skysense_o.scenes.run import run_scene

        path, written, error = Path(row["path"]), [], ""
        outputs = replace(self.outputs, stem=row["stem"])
        try:
            written, _ = run_scene(self.predictor, path, self.vocabulary, outputs, self.options, progress=False)
        except Exception as problem:  # one bad scene does not end the archive
            error = file_error(problem, printable(path.name))
        return {**row, "written": [str(p) for p in written], "error": error}


def segment_archive(
    scenes: Sequence[tuple[Path, str]],
    vocabulary: Vocabulary,
    outputs: SceneOutputs,
    options: SceneOptions,
    *,
    weights: str = "mini",
    device: str = "auto",
    workers: int = 2,
    cpus: float = 1.0,
    gpus: float = 0.0,
    address: str | None = None,
) -> list[dict]:
    """Segment scenes on the workers of a Ray cluster. All machines must see the files under the same paths.

    Args:
        scenes: path, and stem of the result files, per scene.
        outputs: which files to write, and where; `outputs.stem` is not used.
        options: how scenes are read and cut into windows.
        weights, device: see `Predictor.from_pretrained`.
        workers: number of scenes in parallel.
        cpus, gpus: number per worker.
        address: address of a running cluster; None to start one on this machine.

    Returns:
        One row per scene: path, stem, written, error.

    Raises:
        ValueError: fewer than 1 worker.
        ModuleNotFoundError: the extra "archive" is not installed.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers} is out of range: 1 or more")
    # Ray's readers need CPUs besides those of the workers; without these CPUs, readers and workers block each other.
    local = {} if address else {"num_cpus": int(workers * cpus) + 2, "object_store_memory": OBJECT_STORE}
    ray = _ray()
    ray.init(address=address, include_dashboard=False, log_to_driver=False, **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        table = ray.data.from_items([{"path": str(path), "stem": stem} for path, stem in scenes])
        table = table.repartition(len(scenes)).map(
            SceneWorker,
            fn_constructor_args=(weights, device, vocabulary, outputs, options),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        return sorted(table.take_all(), key=lambda row: row["path"])
    finally:
        ray.shutdown()


def _ray() -> ModuleType:
    """Import Ray, with its usage reports switched off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"archives need ray, which is not installed: {install_extra('archive')}", name=error.name
        ) from error
    return ray
