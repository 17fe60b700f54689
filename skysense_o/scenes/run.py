"""Segment a georeferenced raster and write its files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from skysense_o.image_io import gdal_settings
from skysense_o.inference.predictor import Predictor
from skysense_o.memory_limit import share_one_heap
from skysense_o.run_lock import run_lock
from skysense_o.scenes.check import check_formats
from skysense_o.scenes.export import REGION_FORMATS, save_scene
from skysense_o.scenes.options import SceneOptions, SceneOutputs
from skysense_o.scenes.raster import Raster
from skysense_o.scenes.scene import label_scene
from skysense_o.vocabulary import Vocabulary

if TYPE_CHECKING:
    from accelerate import PartialState


def run_scene(
    predictor: Predictor,
    path: Path,
    vocabulary: Vocabulary,
    outputs: SceneOutputs,
    options: SceneOptions | None = None,
    *,
    restart: bool = False,
    processes: PartialState | None = None,
    progress: bool = True,
) -> tuple[list[Path], list[dict]]:
    """Segment a raster of any size and write the result.

    An interrupted run leaves `<stem>.work` in the output folder. The same call resumes from there, and the files are
    identical to those of an uninterrupted run. The folder is deleted when all files are written.

    Args:
        path: the raster.
        outputs: which files to write, and where.
        options: how the raster is read and cut into windows; None for the defaults.
        restart: delete what an interrupted run has left, and start from the beginning.
        processes: Accelerate's state, where several processes share the scene; each runs its share of the rows, and
            process 0 writes the files.
        progress: show a progress bar on stderr.

    Returns:
        The paths of the written files, and one row per class: id, name, pixels, share of the valid pixels, area_m2
        (None where the location on the ground is unknown). Both lists are empty except on process 0.

    Raises:
        ValueError, FileNotFoundError, ImageError: see `Raster`, `plan_windows` and `check_formats`.
        OSError: another run works on this scene, the disk is full, or nothing can be written in the folder.

    >>> from tempfile import TemporaryDirectory
    >>> predictor, vocabulary = Predictor.from_pretrained("mini", device="cpu"), Vocabulary.parse("water,forest")
    >>> with TemporaryDirectory() as folder:
    ...     outputs = SceneOutputs(Path(folder), ("geotiff", "areas"))
    ...     paths, rows = run_scene(predictor, Path("demo/foz_30m.tif"), vocabulary, outputs, progress=False)
    >>> [path.name for path in paths]
    ['foz_30m_labels.tif', 'foz_30m_areas.csv']
    >>> [row["name"] for row in rows]
    ['water', 'forest']
    """
    share_one_heap()
    options = options or SceneOptions()
    index, count = (processes.process_index, processes.num_processes) if processes else (0, 1)
    stem = outputs.stem or path.stem
    with _locked(outputs.folder, stem, processes):
        work = outputs.folder / f"{stem}.work"
        if restart and index == 0:
            shutil.rmtree(work, ignore_errors=True)
        if restart and processes:
            processes.wait_for_everyone()
        remote = options.remote
        with gdal_settings(remote), Raster(path, options.bands, options.gsd, options.aoi, remote) as raster:
            check_formats(outputs.formats, raster)
            formats = REGION_FORMATS & set(outputs.formats)
            objects = getattr(predictor.model, "offers_instances", False) and bool(formats)
            share = {"process": index, "processes": count, "progress": progress}
            scene = label_scene(predictor, raster, vocabulary, work, options, **share, instances=objects)
            with closing(scene.work):
                if processes:
                    processes.wait_for_everyone()
                if index:
                    return [], []
                written, rows = save_scene(scene, outputs)
                scene.work.remove()
    return written, rows


@contextmanager
def _locked(folder: Path, stem: str, processes: PartialState | None) -> Iterator[None]:
    """Lock a scene's work folder for all processes of a run; process 0 holds the lock and informs the others.

    Raises:
        OSError: another run holds the lock.
    """
    with ExitStack() as stack:
        problem = ""
        if processes is None or processes.process_index == 0:
            try:
                lock = run_lock(folder / f".{stem}.lock", folder / f"{stem}.work", "give another --output")
                stack.enter_context(lock)
            except OSError as error:
                problem = str(error)
        if processes is not None and processes.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            (problem,) = broadcast_object_list([problem])
        if problem:
            raise OSError(problem)
        yield
