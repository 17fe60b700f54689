"""Archives of scenes over many machines, by Ray Data: one scene a task, one `Predictor` a worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from skysense_o.errors import file_error
from skysense_o.image_io import printable
from skysense_o.vocabulary import Vocabulary

OBJECT_STORE = 512 * 2**20
"""Only paths and tables travel between workers."""


class SceneWorker:
    """What each worker runs: it loads the model once."""

    def __init__(
        self, weights: str, device: str, words: Vocabulary, folder: str, formats: Sequence[str], options
    ) -> None:
        from skysense_o.inference.predictor import Predictor

        self.predictor = Predictor.from_pretrained(weights, device)
        self.words, self.folder, self.formats, self.options = words, Path(folder), tuple(formats), options

    def __call__(self, row: dict) -> dict:
        """{"path", "stem"} -> the same with "written", a list of paths, and "error", empty where there was none."""
        from skysense_o.scenes.export import run_scene

        path, written, error = Path(row["path"]), [], ""
        try:
            written, _ = run_scene(
                self.predictor, path, self.words, self.folder, row["stem"], self.formats, self.options, progress=False
            )
        except Exception as problem:  # one bad scene does not end the archive
            error = file_error(problem, printable(path.name))
        return {**row, "written": [str(p) for p in written], "error": error}


def segment_archive(
    scenes: Sequence[tuple[Path, str]],
    vocabulary: Vocabulary,
    folder: Path,
    formats: Sequence[str],
    options,
    *,
    weights: str = "mini",
    device: str = "auto",
    workers: int = 2,
    cpus: float = 1.0,
    gpus: float = 0.0,
    address: str | None = None,
) -> list[dict]:
    """Segment scenes on all workers of a Ray cluster; folders must be reachable under the same names everywhere.

    Args:
        scenes: (path, stem of its results) each. options: `SceneOptions`. workers: how many at a time, each with so
            many cpus and gpus. address: of a running cluster; None: this machine.

    Returns:
        one row a scene: path, stem, written, error.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers can do nothing: give 1 or more")
    # Ray's readers need a processor beside the workers; without one they and the workers wait for each other for ever.
    local = {} if address else {"num_cpus": int(workers * cpus) + 2, "object_store_memory": OBJECT_STORE}
    ray = _ray()
    ray.init(address=address, include_dashboard=False, log_to_driver=False, **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        table = ray.data.from_items([{"path": str(path), "stem": stem} for path, stem in scenes])
        table = table.repartition(len(scenes)).map(
            SceneWorker,
            fn_constructor_args=(weights, device, vocabulary, str(folder), tuple(formats), options),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        return sorted(table.take_all(), key=lambda row: row["path"])
    finally:
        ray.shutdown()


def _ray() -> ModuleType:
    """Ray, told to report nothing to anybody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'archives need ray, which is not installed: pip install -e ".[archive]"', name=error.name
        ) from error
    return ray
