"""Segment a georeferenced raster of any size into a label map on the same grid.

Reading and writing run in separate threads, in parallel with the model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from skysense_o.inference.blending import WindowRow, reflected, run_windows
from skysense_o.inference.predictor import Predictor
from skysense_o.inference.segmentation import classes_by_id, fold_background
from skysense_o.inference.sliding import batch_size, plan_windows, thread_count
from skysense_o.inference.windows import Plan
from skysense_o.scenes.check import check_free_space, log_scale
from skysense_o.scenes.instances import collect_instances
from skysense_o.scenes.label_store import LabelStore
from skysense_o.scenes.options import SceneOptions
from skysense_o.scenes.raster import Raster
from skysense_o.vocabulary import Vocabulary


@dataclass
class Scene:
    """A segmented scene, before its files are written.

    Attributes:
        raster: the open raster.
        work: labels and scores on disk.
        classes: class per id of the labels; "none" is the first where there are background words or a threshold.
        threshold: the threshold that was applied, or None.
        settings: everything that the labels depend on.
    """

    raster: Raster
    work: LabelStore
    classes: tuple[str, ...]
    threshold: float | None
    settings: dict = field(default_factory=dict)
    instances: dict[int, int] | None = None  # set by `find_instances`: index of a class -> id in the labels

    @property
    def has_none(self) -> bool:
        """Whether id 0 stands for pixels of no class, rather than for the first class."""
        return self.threshold is not None or any(self.settings.get("background", ()))


def label_scene(
    predictor: Predictor,
    raster: Raster,
    vocabulary: Vocabulary,
    folder: Path,
    options: SceneOptions,
    *,
    process: int = 0,
    processes: int = 1,
    progress: bool = True,
    instances: bool = False,
) -> Scene:
    """Label every valid pixel of a raster. Call it inside `gdal_settings()`.

    Args:
        raster: opened with the bands, gsd and aoi of the options.
        folder: stores labels and scores while they are computed; a call with the same arguments resumes from it. The
            caller deletes it (`Scene.work.remove`).
        process, processes: index of this process, and their number. Each labels its share of the rows; all use the
            same folder.
        progress: show a progress bar on stderr.
        instances: also find objects, with a model that offers them; each window is run once more.

    Raises:
        ValueError, FileNotFoundError, ImageError: see `Raster` and `plan_windows`.
        OSError: the disk has too little free space, or the folder cannot be written.
    """
    threshold = predictor.threshold_for(vocabulary, options.threshold)
    window, overlap, memory = options.window, options.overlap, options.memory
    plan = plan_windows(
        predictor.model, raster.model_size, len(vocabulary), window, overlap, memory, target=raster.size
    )
    classes = classes_by_id(vocabulary, threshold)
    if process == 0:
        predictor.warn_unfamiliar(vocabulary)
        log_scale(raster, predictor.known_gsd, options.gsd)
    settings = _settings(predictor, raster, vocabulary, options, plan, threshold, processes)
    batch = options.batch or batch_size(predictor.model.device)
    pool = thread_count(predictor.model, batch, plan, options.memory)
    check_free_space(folder.parent, raster.size, len(classes))
    work = LabelStore(folder, raster.size, len(classes), {**settings, "batch": batch}, process)
    share = _share(raster.size[0], process, processes)
    if not work.done:  # remove files left by a run with other settings
        (folder / f"instances_{process}.jsonl").unlink(missing_ok=True)
    scene = Scene(raster, work, classes, threshold, settings)
    _label(scene, predictor, vocabulary, plan, share, batch, pool, progress)
    if instances:
        find_instances(predictor, scene, vocabulary, plan, options.threshold, process, processes, progress)
    return scene


def _label(
    scene: Scene,
    predictor: Predictor,
    vocabulary: Vocabulary,
    plan: Plan,
    share: range,
    batch: int,
    pool: int,
    progress: bool,
) -> None:
    """Label the rows of this process that no earlier run has labelled. On an error, `scene.work` is closed."""
    raster, work = scene.raster, scene.work
    with torch.inference_mode():
        probabilities = predictor.window_model(vocabulary, lambda: _overview(raster, plan.rows.window))
    forced = bool(os.environ.get("SKYSENSE_O_PROGRESS"))  # set by programs that read the bar, such as the QGIS plugin
    hidden = not progress or (False if forced else None)  # tqdm: None hides the bar unless stderr is a terminal
    bar = tqdm(total=_count(plan, share), unit="window", desc=raster.path.name, leave=False, disable=hidden)

    def model(windows: Tensor) -> Tensor:
        bar.update(len(windows))
        return probabilities(windows)

    with ExitStack() as on_failure:
        on_failure.callback(work.close)
        with closing(bar), torch.inference_mode(), raster.reopened() as raster_of_writer:
            for number, strip in enumerate(plan.strips):
                begin = max(share.start, work.done.get(number, share.start))
                bar.update(_windows_before(plan, strip, share, begin))
                if begin < share.stop:
                    load = _loader(plan, strip, raster, predictor.fill, bar)
                    write = _writer(work, number, raster_of_writer, vocabulary, scene.threshold)
                    run_windows(plan, strip, range(begin, share.stop), load, model, write, batch, pool)
        on_failure.pop_all()


def find_instances(
    predictor: Predictor,
    scene: Scene,
    vocabulary: Vocabulary,
    plan: Plan,
    threshold: float | None,
    process: int,
    processes: int,
    progress: bool,
) -> None:
    """Find the objects of a labelled scene, window by window, and note their classes in `scene.instances`."""
    with scene.raster.reopened() as raster, torch.inference_mode():
        with predictor.in_precision():
            presence = predictor.model.image_presence(lambda: _overview(raster, plan.rows.window), vocabulary)
        collect_instances(
            predictor, raster, vocabulary, plan, scene.work.folder, threshold, presence, process, processes, progress
        )
    requested = [i for i, background in enumerate(vocabulary.background) if not background]
    scene.instances = {c: k + scene.has_none for k, c in enumerate(requested)}


def _overview(raster: Raster, side: int) -> Tensor:
    """uint8 (3,h,w): the whole scene, reduced so that its longer side is no longer than `side`."""
    factor = min(1.0, side / max(raster.size))
    return torch.from_numpy(raster.thumbnail(tuple(max(1, round(n * factor)) for n in raster.size)))


def _loader(plan: Plan, strip: range, raster: Raster, fill: Sequence[float], bar: tqdm) -> Callable[[int], WindowRow]:
    """Return a function that reads a row of windows: their pixels, and which windows have any valid pixel."""
    columns = plan.cols.touching(plan.cols.span(strip))
    begin, end = plan.cols.starts[columns[0]], plan.cols.starts[columns[-1]] + plan.cols.window

    def load(k: int) -> WindowRow:
        top = plan.rows.starts[k]
        y, x = reflected(raster.model_size[0], top, top + plan.rows.window), reflected(raster.model_size[1], begin, end)
        across = [plan.cols.pixels_of(c) for c in columns]
        down = plan.rows.pixels_of(k)
        valid = raster.valid(down, range(across[0].start, across[-1].stop)).any(axis=0)
        has_data = tuple(bool(valid[p.start - across[0].start : p.stop - across[0].start].any()) for p in across)
        bar.update(has_data.count(False))
        if not any(has_data):
            return WindowRow(torch.empty(3, 0, 0, dtype=torch.uint8), has_data)
        y0, x0 = int(y.min()), int(x.min())
        pixels = torch.from_numpy(raster.pixels(range(y0, int(y.max()) + 1), range(x0, int(x.max()) + 1), fill))
        if pixels.shape[1:] != (len(y), len(x)):  # beyond the edge of the scene, pixels are reflected
            pixels = pixels[:, y - y0][:, :, x - x0]
        return WindowRow(pixels, has_data)

    return load


def _writer(
    work: LabelStore, strip_number: int, raster: Raster, vocabulary: Vocabulary, threshold: float | None
) -> Callable[[range, range, Tensor, Tensor], None]:
    """Return a function that stores a finished block of a strip."""

    def write(rows: range, cols: range, labels: Tensor, score: Tensor) -> None:
        score = score.numpy()
        _, ids = fold_background(vocabulary, labels.numpy(), score, threshold)
        work.write(rows, cols, ids, score, raster.valid(rows, cols))
        work.finished(strip_number, rows.stop)

    return write


def _share(height: int, process: int, processes: int) -> range:
    """The range of image rows that one of several processes segments."""
    return range(height * process // processes, height * (process + 1) // processes)


def _count(plan: Plan, share: range) -> int:
    """Number of windows that the rows of a process need."""
    if not share:
        return 0
    rows = len(plan.rows.touching(plan.rows.span(share)))
    return rows * sum(len(plan.cols.touching(plan.cols.span(strip))) for strip in plan.strips)


def _windows_before(plan: Plan, strip: range, share: range, begin: int) -> int:
    """Number of windows of a strip that an earlier run has finished; `begin` is the first row that is not finished."""
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
    """Everything that the labels depend on; stored with the journal and with the result."""
    aoi = None if options.aoi is None else hashlib.sha256(Path(options.aoi).read_bytes()).hexdigest()
    file_stat = raster.path.stat()
    return {
        "input": raster.path.name,
        "input_bytes": file_stat.st_size,
        "input_changed": file_stat.st_mtime_ns,
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
        **getattr(predictor.model, "settings", {}),
        **({} if predictor.backend == "torch" else {"backend": predictor.backend}),
        "processes": processes,
    }


def tags_of(scene: Scene) -> dict[str, str]:
    """The settings as tags of a GeoTIFF: name -> JSON text."""
    keys = ("input", "weights", "weights_sha256", "words", "background", "threshold", "bands", "gsd")
    return {f"SKYSENSE_O_{key.upper()}": json.dumps(scene.settings[key]) for key in keys}
