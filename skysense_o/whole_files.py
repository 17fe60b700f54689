"""Write files so that each is either complete or absent: if writing is interrupted, an earlier file stays as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = 2**20
"""A disk with fewer free bytes than this counts as full, if a library's error does not give its cause."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path beside it, which is synced and renamed at the end.

    If the block raises, the temporary file is removed and an earlier `path` is unchanged. The temporary name has
    another suffix, so that no search for images finds the file. Libraries cannot infer the format from this suffix, so
    pass them the format explicitly.

    Args:
        path: the file to write; its folder is created if necessary.

    Raises:
        OSError: the file could not be written; on a full disk the message names the file, the size and the cure.

    >>> with whole(Path("/tmp/x.txt")) as part:          # doctest: +SKIP
    ...     part.write_text("complete")
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with full_disk_told(path, part, "; an earlier file of this name is unchanged"):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)  # left by a killed run
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    with suppress(OSError):  # makes the rename survive a crash; some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_writable(folder: Path) -> None:
    """Check that a folder, which need not exist yet, can be written. Call it before long work.

    Raises:
        PermissionError: the folder, or the nearest folder above it that exists, cannot be written.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:  # os.access permits everything to root, even where nothing can be written
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EMFILE):
            raise
        raise PermissionError(f"the folder {str(folder)!r} cannot be written: give another --output") from error


@contextmanager
def full_disk_told(path: Path, part: Path | None = None, note: str = "") -> Iterator[None]:
    """If the disk, or the user's share of it, is full in this context, raise an error with file, size and cure.

    Args:
        path: the file that is written.
        part: temporary name of the file; None if the file is written directly.
        note: added to the message.

    Raises:
        OSError: the disk is full. Other errors are raised as they are.
    """
    try:
        yield
    except Exception as error:
        full = _full_disk(error, Path(path), part or Path(path), note)
        if full is not None:
            raise full from error
        raise


def _full_disk(error: Exception, path: Path, part: Path, note: str) -> OSError | None:
    """The error to raise if the disk was full; None if something else went wrong, or the error is already complete."""
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC and getattr(error, "strerror", None) is None:  # this function has already made this error
        return None
    try:
        free = shutil.disk_usage(path.parent).free
        size = part.stat().st_size if part.exists() else 0
    except OSError:
        return None
    if code not in (errno.ENOSPC, errno.EDQUOT) and free >= FULL:
        return None
    full = OSError(
        f"{path} could not be written: the disk is full. It needs more than {_megabytes(size)} and {_megabytes(free)}"
        f" are free: make room, or write to another folder{note}"
    )
    full.errno = errno.ENOSPC
    return full


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically; see `whole`."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, indented, atomically; see `whole`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
