"""Segment many scenes on the workers of a Ray cluster, one scene at a time per worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from skysense_o.errors import file_error
from skysense_o.image_io import printable
from skysense_o.inference.predictor import Predictor
from skysense_o.scenes.options import SceneOptions, SceneOutputs
from skysense_o.scenes.run import run_scene
from skysense_o.vocabulary import Vocabulary
from skysense_o.workers import Cluster


def segment_archive(
    scenes: Sequence[tuple[Path, str]],
    vocabulary: Vocabulary,
    outputs: SceneOutputs,
    options: SceneOptions,
    cluster: Cluster,
    *,
    weights: str = "mini",
    device: str = "auto",
) -> list[dict]:
    """Segment scenes on a Ray cluster. All machines must see the files under the same paths.

    Args:
        scenes: path, and stem of the result files, per scene.
        outputs: which files to write, and where; `outputs.stem` is not used.
        options: how scenes are read and cut into windows.
        cluster: where to run.
        weights, device: see `Predictor.from_pretrained`.

    Returns:
        One row per scene: path, stem, written (paths), error (a message or ""), warnings (messages).

    Raises:
        ModuleNotFoundError, OSError, ValueError: see `Cluster.each`.
    """
    rows = [{"path": str(path), "stem": stem} for path, stem in scenes]
    function = partial(segment_one, vocabulary, outputs, options)
    with cluster.each(partial(Predictor.from_pretrained, weights, device)) as each:
        done = [row for _, row in each(function, rows, desc="archive", unit="scene", lost=_lost)]
    return sorted(done, key=lambda row: row["path"])


def segment_one(
    vocabulary: Vocabulary, outputs: SceneOutputs, options: SceneOptions, predictor: Predictor, row: dict
) -> dict:
    """Segment one scene: complete a row with "path" and "stem", see `segment_archive`."""
    path, written, error = Path(row["path"]), [], ""
    with _warnings() as warnings:  # what a worker logs is not seen where the archive was started
        try:
            own = replace(outputs, stem=row["stem"])
            written, _ = run_scene(predictor, path, vocabulary, own, options, progress=False)
        except Exception as problem:  # one bad scene does not end the archive
            error = file_error(problem, printable(path.name))
    return {**row, "written": [str(p) for p in written], "error": error, "warnings": warnings}


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the warnings that are logged in this context."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("skysense_o")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _lost(row: dict, reason: str) -> dict:
    return {**row, "written": [], "error": f"{printable(Path(row['path']).name)}: {reason}", "warnings": []}
