"""The files of folders and zips as one list; nothing is unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file. `name` is its path with forward slashes, such as `train/images/part1.zip/images/P0000.png`."""

    name: str
    location: Path | tuple[zipfile.ZipFile, str]  # a file, or (zip, name in it)

    def read(self) -> bytes:
        if isinstance(self.location, Path):
            return self.location.read_bytes()
        archive, member = self.location
        return archive.read(member)


def entries_of(paths: list[str | Path]) -> list[Entry]:
    """List all files of folders and zips, and of zips in them.

    Unpacked files come first, so that an unpacked copy of a file is used before one in a zip.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is not a zip, or is damaged.
    """
    found: list[Entry] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            plain = [p for p in files if p.suffix.lower() != ".zip"]
            # The name of the folder comes first: for some publishers it is the split.
            found += [Entry(f"{path.resolve().name}/{p.relative_to(path).as_posix()}", p) for p in plain]
            for p in files:
                if p.suffix.lower() == ".zip":
                    found += _in_zip(p, f"{path.resolve().name}/{p.relative_to(path).as_posix()}")
        elif path.is_file():
            found += _in_zip(path, path.name)
        else:
            raise FileNotFoundError(f"--source {path} is not there: give the publisher's folder, or its zip files")
    return found


def _in_zip(path: Path, name: str) -> Iterator[Entry]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a zip, or is truncated: unpack it and give the folder, or get it again")
    archive = zipfile.ZipFile(path)
    for member in archive.infolist():
        if member.is_dir():
            continue
        if member.filename.lower().endswith(".zip"):
            inner = zipfile.ZipFile(archive.open(member))
            for entry in inner.infolist():
                if not entry.is_dir():
                    yield Entry(f"{name}/{member.filename}/{entry.filename}", (inner, entry.filename))
        else:
            yield Entry(f"{name}/{member.filename}", (archive, member.filename))
