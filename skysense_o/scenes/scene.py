"""A georeferenced raster of any size to a label map in the same place; reading and writing go on beside the model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from skysense_o.inference.blending import WindowRow, reflected, run_windows
from skysense_o.inference.predictor import Predictor, fold_background
from skysense_o.inference.sliding import MEMORY, batch_size, plan_windows, thread_count
from skysense_o.inference.windows import Plan
from skysense_o.scenes.label_store import LabelStore
from skysense_o.scenes.pixel_area import GROUND_UNKNOWN
from skysense_o.scenes.raster import Raster
from skysense_o.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

FAR_GSD = 2.0
"""A scene whose pixels are so many times larger or smaller than those of the training images gets a warning."""


@dataclass(frozen=True)
class SceneOptions:
    """How a scene is read and cut.

    bands, gsd, aoi, remote: see `Raster`. window, overlap, memory: see `plan_windows`.
    """

    bands: tuple[int, ...] | None = None
    gsd: float | None = None
    aoi: str | Path | None = None
    window: int | None = None
    overlap: int | None = None
    memory: int = MEMORY
    threshold: float | None = None
    batch: int | None = None
    remote: bool = False


@dataclass
class Scene:
    """A segmented scene, still in its work folder. names: as the ids of the labels count them."""

    raster: Raster
    work: LabelStore
    classes: tuple[str, ...]
    threshold: float | None
    settings: dict = field(default_factory=dict)

    @property
    def has_none(self) -> bool:
        """Whether id 0 stands for pixels of no class, rather than for the first class."""
        return self.threshold is not None or bool(self.settings.get("background"))


def parse_bytes(text: str) -> int:
    """ "2GiB", "800MB" or plain bytes -> bytes.

    Raises:
        ValueError: anything else, or not above 0.
    """
    units = {"": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.strip().lower().rstrip("bikmg ")
    try:
        size = int(float(number) * units[text.strip().lower()[len(number) :].strip()])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"memory {text!r} is not a size: write it as 2GiB or 800MB")
    return size


def segment_scene(
    predictor: Predictor,
    raster: Raster,
    vocabulary: Vocabulary,
    folder: Path,
    options: SceneOptions,
    *,
    process: int = 0,
    processes: int = 1,
    progress: bool = True,
) -> Scene:
    """Label every valid pixel of a raster; call inside `gdal_settings()`. An interrupted call goes on where it stopped.

    Args:
        raster: opened with the bands, gsd and aoi of the options.
        folder: of the work, made if need be; kept until the caller removes it (`Scene.work.remove`).
        process, processes: which share of the rows is done here; all shares go into the same folder.

    Raises:
        ValueError, FileNotFoundError, ImageError: see `Raster` and `plan_windows`. OSError: no room on the disk.
    """
    threshold = predictor.threshold_for(vocabulary, options.threshold)
    plan = plan_windows(
        predictor.model, raster.seen, len(vocabulary), options.window, options.overlap, options.memory, raster.size
    )
    classes, _ = fold_background(vocabulary, np.zeros((1, 1), np.int64), np.zeros((1, 1)), threshold)
    _tell(raster, predictor.model.gsd, options.gsd)
    settings = _settings(predictor, raster, vocabulary, options, plan, threshold, processes)
    batch = options.batch or batch_size(predictor.model.device)
    pool = thread_count(predictor.model, batch, plan, options.memory)
    _check_room(folder.parent, raster.size, len(classes))
    work = LabelStore(folder, raster.size, len(classes), {**settings, "batch": batch}, process)
    share = _share(raster.size[0], process, processes)

    def ask(windows: Tensor) -> Tensor:
        bar.update(len(windows))
        return predictor.windows(windows, vocabulary)

    bar = tqdm(total=_count(plan, share), unit="window", desc=raster.path.name, disable=not progress)
    with ExitStack() as failed:
        failed.callback(work.close)
        with closing(bar), torch.inference_mode(), raster.again() as mine:
            for number, strip in enumerate(plan.strips):
                begin = max(share.start, work.done.get(number, share.start))
                rows = range(begin, share.stop)
                bar.update(_windows_before(plan, strip, share, begin))
                if rows:
                    load = _loader(plan, strip, raster, predictor.fill, bar)
                    write = _writer(work, number, mine, vocabulary, threshold)
                    run_windows(plan, strip, rows, load, ask, write, batch, pool)
        failed.pop_all()
    return Scene(raster, work, classes, threshold, settings)


def _loader(plan: Plan, strip: range, raster: Raster, fill: Sequence[float], bar: tqdm) -> Callable[[int], WindowRow]:
    """Reads a row of windows: their pixels, and which of them hold any valid one."""
    columns = plan.cols.touching(plan.cols.span(strip))
    begin, end = plan.cols.starts[columns[0]], plan.cols.starts[columns[-1]] + plan.cols.window

    def load(k: int) -> WindowRow:
        top = plan.rows.starts[k]
        y, x = reflected(raster.seen[0], top, top + plan.rows.window), reflected(raster.seen[1], begin, end)
        across = [plan.cols.pixels_of(c) for c in columns]
        down = plan.rows.pixels_of(k)
        valid = raster.valid(down, range(across[0].start, across[-1].stop)).any(axis=0)
        wanted = tuple(bool(valid[p.start - across[0].start : p.stop - across[0].start].any()) for p in across)
        bar.update(wanted.count(False))
        if not any(wanted):
            return WindowRow(torch.empty(3, 0, 0, dtype=torch.uint8), wanted)
        y0, x0 = int(y.min()), int(x.min())
        pixels = torch.from_numpy(raster.pixels(range(y0, int(y.max()) + 1), range(x0, int(x.max()) + 1), fill))
        if pixels.shape[1:] != (len(y), len(x)):  # at the scene's end
            pixels = pixels[:, y - y0][:, :, x - x0]
        return WindowRow(pixels, wanted)

    return load


def _writer(
    work: LabelStore, strip_number: int, raster: Raster, vocabulary: Vocabulary, threshold: float | None
) -> Callable[[range, range, Tensor, Tensor], None]:
    def write(rows: range, cols: range, labels: Tensor, score: Tensor) -> None:
        score = score.numpy()
        _, ids = fold_background(vocabulary, labels.numpy(), score, threshold)
        work.write(rows, cols, ids, score, raster.valid(rows, cols))
        work.finished(strip_number, rows.stop)

    return write


def _share(height: int, process: int, processes: int) -> range:
    return range(height * process // processes, height * (process + 1) // processes)


def _count(plan: Plan, share: range) -> int:
    if not share:
        return 0
    rows = len(plan.rows.touching(plan.rows.span(share)))
    return rows * sum(len(plan.cols.touching(plan.cols.span(strip))) for strip in plan.strips)


def _windows_before(plan: Plan, strip: range, share: range, begin: int) -> int:
    """Windows of a strip that an earlier run has done."""
    if begin >= share.stop:
        done = len(plan.rows.touching(plan.rows.span(share)))
    else:
        done = plan.rows.first_window(begin) - plan.rows.first_window(share.start)
    return done * len(plan.cols.touching(plan.cols.span(strip)))


def _settings(
    predictor: Predictor,
    raster: Raster,
    vocabulary: Vocabulary,
    options: SceneOptions,
    plan: Plan,
    threshold: float | None,
    processes: int,
) -> dict:
    """All that the labels depend on, for the journal and the record."""
    aoi = None if options.aoi is None else hashlib.sha256(Path(options.aoi).read_bytes()).hexdigest()
    facts = raster.path.stat()
    return {
        "input": raster.path.name,
        "input_bytes": facts.st_size,
        "input_changed": facts.st_mtime_ns,
        "weights": predictor.source,
        "weights_sha256": predictor.sha256,
        "precision": predictor.precision,
        "device": str(predictor.model.device),
        "words": [list(phrases) for phrases in vocabulary.phrases],
        "background": list(vocabulary.background),
        "threshold": threshold,
        "bands": raster.bands,
        "gsd": options.gsd,
        "aoi_sha256": aoi,
        "stretch": raster.stretch,
        "window": [plan.rows.window, plan.cols.window],
        "overlap": plan.rows.overlap,
        "strips": len(plan.strips),
        "processes": processes,
    }


def _tell(raster: Raster, trained: float, gsd: float | None) -> None:
    """How the raster is shown, and its scale, in the log; a warning where that is far from the training images'."""
    for note in raster.notes:
        logger.info("%s: %s", raster.path.name, note)
    own, seen = raster.areas.gsd, gsd or raster.areas.gsd
    if own is None:
        logger.info("%s: %s; areas are counted in pixels", raster.path.name, GROUND_UNKNOWN)
        return
    shown = f", shown to the model at {seen:g} m" if gsd else ""
    logger.info("%s: %.3g m a pixel%s", raster.path.name, own, shown)
    if trained and not 1 / FAR_GSD <= seen / trained <= FAR_GSD:
        logger.warning(
            "the weights were trained at about %g m a pixel: expect little here, or try --gsd %g", trained, trained
        )


def _check_room(folder: Path, size: tuple[int, int], ids: int) -> None:
    """Work files, an uncompressed copy and the result must fit.

    Raises:
        OSError: they do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"nothing can be written in {str(folder)!r}: give another --output")
    need = size[0] * size[1] * (3 + 3 * (1 if ids <= 254 else 2))
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(
            f"{str(folder)!r} has {free / 2**30:.1f} GiB free and this scene needs {need / 2**30:.1f} GiB: make room or"
            " give another --output"
        )


def record(scene: Scene) -> dict[str, str]:
    """The settings as the tags of a GeoTIFF: text by name."""
    keys = ("input", "weights", "weights_sha256", "words", "background", "threshold", "bands", "gsd")
    return {f"SKYSENSE_O_{key.upper()}": json.dumps(scene.settings[key]) for key in keys}
