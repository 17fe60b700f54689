"""Open a stranger's image in a process of its own, which is killed when it is late.

A decoder that hangs, crashes or fills the memory takes this process along, and not the server. What the server gets are
arrays, a line of JSON, and for a scene a GeoTIFF that the process wrote anew: it decodes no byte of the upload itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

import skysense_o
from skysense_o.errors import USER_ERRORS, message
from skysense_o.image_io import ImageError, gdal_settings, printable
from skysense_o.interactive.current_request import TooLate, check_time
from skysense_o.interactive.limits import Limits
from skysense_o.interactive.opening import OpenedImage, open_upload, smaller_scene

BEAT = 0.05
"""Seconds between two looks at whether the request was stopped."""
MEMORY, MEMORY_PER_PIXEL = 1 << 30, 32
"""Bytes of address space beside what is mapped at the start: for GDAL, and per pixel that the process may read."""
ANSWER, ARRAYS = "opened.json", "opened.npz"


def open_isolated(path: Path, folder: Path, limits: Limits) -> OpenedImage:
    """Open an image as `open_upload` does, in a process of its own.

    Args:
        path: the file; it is not needed afterwards.
        folder: an empty folder, for the scene if the image is one.
        limits: pixels and seconds.

    Returns:
        The image. `scene` is the copy on the grid of `rgb`, and `full` the copy with all pixels, if it was scaled down.

    Raises:
        ImageError, FileNotFoundError: see `open_upload`; ImageError as well if the process died.
        TooLate: the process was killed after `limits.seconds`.
        StoppedByUser: the request was stopped.
    """
    order = json.dumps([os.fspath(path), os.fspath(folder), limits.pixels, limits.read_pixels, limits.seconds])
    root = str(Path(skysense_o.__file__).parents[1])
    paths = [path for path in (root, os.environ.get("PYTHONPATH")) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    code = "import sys; sys.path[:] = filter(None, sys.path)"  # nothing is imported from the current folder
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; from {__name__} import open_and_answer; open_and_answer()", order],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    name, deadline = printable(path.name), time.monotonic() + limits.seconds
    try:
        while process.poll() is None:
            check_time()
            if time.monotonic() > deadline:
                raise TooLate(f"{name} could not be read within {limits.seconds:g} s, the time limit")
            time.sleep(BEAT)
    finally:
        process.kill()
        process.wait()
    return _answer_of(process.returncode, name, folder)


def _answer_of(code: int, name: str, folder: Path) -> OpenedImage:
    if code < 0 and signal.Signals(-code).name == "SIGALRM":  # which Windows does not have
        raise TooLate(f"{name} could not be read within the time limit")
    if code < 0:
        raise ImageError(f"{name} makes its decoder fail ({signal.Signals(-code).name}): it is damaged, or too large")
    if code:
        raise RuntimeError(f"the process that opened {name} ended with exit code {code}")  # it told why on stderr
    answer = json.loads((folder / ANSWER).read_bytes())
    if "error" in answer:
        raise {"FileNotFoundError": FileNotFoundError}.get(answer["kind"], ImageError)(answer["error"])
    with np.load(folder / ARRAYS) as arrays:
        rgb, valid = arrays["rgb"], arrays.get("valid")
    (folder / ARRAYS).unlink()
    scene, full = (None if answer[key] is None else Path(answer[key]) for key in ("scene", "full"))
    return OpenedImage(rgb, answer["name"], scene, valid, tuple(answer["notes"]), full)


def open_and_answer() -> None:
    """The process: open one image, and leave arrays and a line of JSON in the folder."""
    path, folder, pixels, read_pixels, seconds = json.loads(sys.argv[1])
    _limit(MEMORY + MEMORY_PER_PIXEL * read_pixels, seconds)
    try:
        opened = kept(open_upload(path, pixels, read_pixels), Path(folder))
        arrays = {"rgb": opened.rgb} if opened.valid is None else {"rgb": opened.rgb, "valid": opened.valid}
        np.savez(Path(folder) / ARRAYS, **arrays)
        places = {key: value and str(value) for key, value in (("scene", opened.scene), ("full", opened.full))}
        answer = {"name": opened.name, "notes": opened.notes, **places}
    except USER_ERRORS as error:
        answer = {"error": message(error), "kind": type(error).__name__}
    (Path(folder) / ANSWER).write_text(json.dumps(answer))


def _limit(memory: int, seconds: float) -> None:
    """End this process when it takes so much memory more than now, even if the server is gone."""
    if sys.platform == "win32":
        return
    import resource

    with suppress(OSError):  # there is no /proc on a Mac, which does not enforce this limit either
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # without a handler: the system ends the process


def kept(image: OpenedImage, folder: Path) -> OpenedImage:
    """The image with a GeoTIFF of its scene in `folder`, and one of its size if it was scaled down."""
    source = image.scene or image.full
    if source is None:
        return image
    try:
        copy = _written_anew(source, folder / "scene.tif")
    except Exception as error:  # GDAL raises many types; the RGB bands were read
        note = f"shown without its place on the ground: it cannot be copied ({next(iter(str(error).splitlines()), '')})"
        return replace(image, scene=None, full=None, notes=(*image.notes, note))
    if image.full is None:
        return replace(image, scene=copy)
    return replace(image, scene=smaller_scene(copy, image.rgb.shape[:2], folder), full=copy)


def _written_anew(source: Path, target: Path) -> Path:
    """A GeoTIFF with all bands, masks and the georeference of a raster."""
    import rasterio
    import rasterio.shutil

    from skysense_o.image_io.gdal_access import open_dataset

    options = {"tiled": True, "compress": "deflate", "zlevel": 1, "bigtiff": "if_safer", "copy_src_overviews": True}
    with gdal_settings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), open_dataset(source) as file:
        rasterio.shutil.copy(file, target, driver="GTiff", **options)
    return target
