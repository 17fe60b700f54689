"""A lock, so that only one run at a time writes into a folder; the system drops it when its process dies."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

import portalocker

logger = logging.getLogger(__name__)
PATIENCE = 10.0
"""Seconds to wait for the children of a killed run, which may hold its lock a little longer."""


@contextmanager
def run_lock(path: Path, folder: Path, cure: str) -> Iterator[None]:
    """Hold a lock while the block runs.

    Args:
        path: the file of the lock; it is removed at the end. The file of a killed run is taken over.
        folder: what is locked, for the message.
        cure: what a user can do instead of waiting, for the message.

    Raises:
        OSError: another run holds the lock; the message names its process and start time.
    """
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquired(path, folder, cure)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            file.close()
        if is_new:  # the folder was made for this lock: remove it if the run left it empty
            with suppress(OSError):
                path.parent.rmdir()


def _acquired(path: Path, folder: Path, cure: str) -> IO | None:
    begun = time.monotonic()
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (closed when the lock is given up)
        try:
            portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.AlreadyLocked:
            holder = _holder(path)
            file.close()
            if _is_dead(holder) and time.monotonic() - begun < PATIENCE:
                time.sleep(0.1)
                continue
            raise OSError(
                f"{str(folder)!r} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')} since"
                f" {holder.get('since', '?')}: wait until it ends, or {cure}"
            ) from None
        except portalocker.LockException as error:
            logger.warning("%s: this file system has no locks (%s): start no other run in it", folder, error)
            file.close()
            return None
        if _is_same(file, path):
            break
        file.close()  # the previous holder has just removed this file: open the new one
    file.truncate(0)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
    file.flush()
    return file


def _is_same(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> dict:
    """What the holder of the lock wrote about itself; {} if the holder has not written anything yet."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_dead(holder: dict) -> bool:
    """Whether the holder was a process of this machine that no longer runs."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
