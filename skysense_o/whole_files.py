"""Write files so that each is either complete or absent: whatever ends the writer, an earlier file stays as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = 2**20
"""A disk with fewer free bytes counts as full when a library's error does not say why it failed."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path beside it, which is synced and renamed at the end.

    If the block raises, the temporary file is removed and an earlier `path` is unchanged. The temporary name has
    another suffix, so that no search for images finds it: tell libraries the format.

    Args:
        path: the file to write; its folder is made if need be.

    Raises:
        OSError: the file could not be written; on a full disk the message names the file, the size and the cure.

    >>> with whole(Path("/tmp/x.txt")) as part:          # doctest: +SKIP
    ...     part.write_text("complete")
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # what a killed run left behind
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:
        full = _full_disk(error, path, part)
        if full is not None:
            raise full from error
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    with suppress(OSError):  # so that the rename outlives a crash; some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _full_disk(error: Exception, path: Path, part: Path) -> OSError | None:
    """The error to raise if the disk, or the user's share of it, was full; None if something else went wrong."""
    try:
        free = shutil.disk_usage(path.parent).free
        size = part.stat().st_size if part.exists() else 0
    except OSError:
        return None
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and free >= FULL:
        return None
    full = OSError(
        f"{path} could not be written: the disk is full. It needs more than {_megabytes(size)} and {_megabytes(free)}"
        " are free: make room, or write to another folder; an earlier file of this name is unchanged"
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
