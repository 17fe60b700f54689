"""What publishers ship, zip files or folders, as one list of files. Nothing is unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file. `name` is its path with forward slashes, through zips: `train/images/part1.zip/images/P0000.png`."""

    name: str
    place: Path | tuple[zipfile.ZipFile, str]

    def read(self) -> bytes:
        if isinstance(self.place, Path):
            return self.place.read_bytes()
        archive, member = self.place
        return archive.read(member)


def entries_of(paths: list[str | Path]) -> list[Entry]:
    """All files below the folders and in the zips given, in zips below them, and in zips in those zips.

    Unpacked files come before those in zips, so that of two copies the unpacked one is used.

    Raises:
        FileNotFoundError: a path that is not there. ValueError: a file that is no zip, or a damaged one.
    """
    found: list[Entry] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            plain = [p for p in files if p.suffix.lower() != ".zip"]
            # The folder's own name stays in front: some publishers say the split there.
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
        raise ValueError(f"{path} is no zip, or cut short: unpack it and give the folder, or get it again")
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
