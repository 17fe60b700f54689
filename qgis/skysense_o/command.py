"""Call the command line of SkySense-O, show its progress and cancel it. This module imports nothing from QGIS."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

DEFAULT_COMMAND = "skysense-o scene"
PERCENT = re.compile(r"(\d{1,3})%\|[^\]]*\]?")
"""The part of a tqdm progress bar that begins with the percentage."""
SECONDS_TO_STOP = 20.0
FOREIGN = ("PYTHON", "GDAL_", "PROJ_", "QT_", "QGIS_", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_")
"""Prefixes of the environment variables that QGIS sets for its own Python and libraries."""


class CommandError(Exception):
    """The command could not be started, or failed."""


class Cancelled(Exception):
    """The user cancelled the run."""


def scene_command(
    command_line: str,
    source: Path,
    folder: Path,
    formats: Sequence[str],
    *,
    classes: str,
    background: str = "",
    threshold: float = 0.0,
    bands: str = "",
    gsd: float = 0.0,
    min_area: float = 0.0,
    weights: str = "",
) -> list[str]:
    """Build the command that segments a raster; blank and zero options are left out.

    Args:
        command_line: program and first arguments, such as `/opt/env/bin/skysense-o scene`, or
            `"/opt/my env/bin/python" /opt/skysense-o/demo/demo.py`. Paths with spaces need quotes.
        source: file of the raster.
        folder: folder for the results.
        formats: formats of the results, as in `--save`.

    Raises:
        CommandError: the command line is empty, or there are no classes.

    >>> scene_command("skysense-o scene", Path("a.tif"), Path("out"), ["geotiff"], classes="road", threshold=0.4)[:4]
    ['skysense-o', 'scene', '--input', 'a.tif']
    """
    words = [word.strip('"') for word in shlex.split(command_line, posix=os.name != "nt")]
    if not words:
        raise CommandError("no command: set it in Settings > Options > Processing > Providers > SkySense-O")
    if not classes.strip():
        raise CommandError("no classes: name at least one, such as road")
    # Values are given after "=", because a value may begin with a minus.
    command = [*words, "--input", str(source), "--output", str(folder), f"--classes={classes}"]
    command.append(f"--save={','.join(formats)}")
    options = {
        "background": background.strip(),
        "threshold": threshold,
        "bands": bands.strip(),
        "gsd": gsd,
        "min-area": min_area,
        "weights": weights.strip(),
    }
    return command + [f"--{name}={value}" for name, value in options.items() if value]


def run(
    command: Sequence[str],
    is_cancelled: Callable[[], bool],
    set_progress: Callable[[float], None],
    tell: Callable[[str], None],
) -> None:
    """Run a command to its end.

    Args:
        is_cancelled: called several times per second; if it returns True, the command gets SIGTERM, so that it can
            store its progress. If the command still runs after SECONDS_TO_STOP, it is killed.
        set_progress: called with the progress in percent, 0..100.
        tell: called with each line that the command prints.

    Raises:
        Cancelled: `is_cancelled` returned True.
        CommandError: the command cannot be started, or fails; the message has the last lines of its output.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=clean_environment(os.environ),
            start_new_session=True,  # no effect on Windows
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise CommandError(
            f"{command[0]!r} cannot be started ({error.strerror}): install SkySense-O, then set the command in"
            " Settings > Options > Processing > Providers > SkySense-O"
        ) from error
    pieces: queue.Queue[bytes] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, pieces), daemon=True)
    reader.start()
    last: deque[str] = deque(maxlen=8)
    buffer, running = b"", True
    while running:
        if is_cancelled():
            _stop(process)
            raise Cancelled
        try:
            piece = pieces.get(timeout=0.2)
        except queue.Empty:
            continue
        running = bool(piece)
        *lines, buffer = re.split(rb"[\r\n]", buffer + (piece or b"\n"))
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            percent = PERCENT.search(text)
            if percent:
                set_progress(min(100.0, float(percent[1])))
                text = text[percent.end() :].strip()  # a message may follow the bar on the same line
            if text:
                last.append(text)
                tell(text)
    if process.wait():
        raise CommandError("\n".join(last) or f"{command[0]} ended with exit code {process.returncode}")
    set_progress(100.0)  # the progress bar of a scene with few windows may end below 100


def clean_environment(environment) -> dict[str, str]:
    """The environment variables for the command: those of QGIS, without the ones for its own Python, GDAL and Qt."""
    kept = {key: value for key, value in environment.items() if not key.startswith(FOREIGN)}
    return {**kept, "SKYSENSE_O_PROGRESS": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def _read(stream, pieces: queue.Queue[bytes]) -> None:
    """Pass on each piece of a stream as soon as it arrives, and an empty piece at the end of the stream."""
    with stream:
        while piece := stream.read1(65536):
            pieces.put(piece)
    pieces.put(b"")


def _stop(process: subprocess.Popen) -> None:
    """End a command and the processes that it started."""

    def send(number: int) -> None:
        if sys.platform == "win32":
            process.terminate()
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    send(signal.SIGTERM)
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        send(getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()
