"""Open a stranger's image in a separate process, which is killed when it takes too long.

A decoder that hangs, crashes or fills the memory ends only this process, and not the server. The server decodes no byte
of the upload: it gets arrays, a line of JSON, and for a scene a GeoTIFF that this process has written.
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
"""Seconds between two checks whether the request was stopped."""
MEMORY, MEMORY_PER_PIXEL = 1 << 30, 32
"""Bytes of address space that the process may take in addition: a fixed amount for GDAL, and an amount per pixel."""
ANSWER, ARRAYS = "opened.json", "opened.npz"


def open_isolated(path: Path, folder: Path, limits: Limits) -> OpenedImage:
    """Open an image as `open_upload` does, in a separate process.

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
    if code < 0 and signal.Signals(-code).name == "SIGALRM":  # Windows has no SIGALRM
        raise TooLate(f"{name} could not be read within the time limit")
    if code < 0:
        raise ImageError(f"{name} makes its decoder fail ({signal.Signals(-code).name}): it is damaged, or too large")
    if code:
        raise RuntimeError(f"the process that opened {name} ended with exit code {code}")  # stderr has the reason
    answer = json.loads((folder / ANSWER).read_bytes())
    if "error" in answer:
        raise {"FileNotFoundError": FileNotFoundError}.get(answer["kind"], ImageError)(answer["error"])
    with np.load(folder / ARRAYS) as arrays:
        rgb, valid = arrays["rgb"], arrays.get("valid")
    (folder / ARRAYS).unlink()
    scene, full = (None if answer[key] is None else Path(answer[key]) for key in ("scene", "full"))
    return OpenedImage(rgb, answer["name"], scene, valid, tuple(answer["notes"]), full)


def open_and_answer() -> None:
    """Main function of the process: open one image, and write arrays and a line of JSON into the folder."""
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
    """Allow this process `memory` more bytes and `seconds`; the system enforces both limits even if the server ends."""
    if sys.platform == "win32":
        return
    import resource

    with suppress(OSError):  # a Mac has no /proc, and does not enforce this limit
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # the signal has no handler, so the system ends the process


def kept(image: OpenedImage, folder: Path) -> OpenedImage:
    """The image with a copy of its scene in `folder`; if it was scaled down, also with a copy of the scaled size."""
    source = image.scene or image.full
    if source is None:
        return image
    try:
        copy = _written_anew(source, folder / "scene.tif")
    except Exception as error:  # GDAL raises many types of errors
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
