"""List the files of folders and zips together; nothing is unpacked."""

from __future__ import annotations

import zipfile
import zlib
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
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise ValueError(f"{self.name} cannot be unpacked ({error}): download its zip again") from error


def entries_of(paths: list[str | Path]) -> list[Entry]:
    """List all files of folders and zips, and of zips inside folders and zips.

    Unpacked files come first, so that an unpacked file is used in place of its copy in a zip.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a given file, or a .zip inside a folder, is not a zip or is damaged.
    """
    found: list[Entry] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            plain = [p for p in files if p.suffix.lower() != ".zip"]
            # `name` begins with the folder's own name, because for some publishers this is the split.
            found += [Entry(f"{path.resolve().name}/{p.relative_to(path).as_posix()}", p) for p in plain]
            for p in files:
                if p.suffix.lower() == ".zip":
                    found += _in_zip(p, f"{path.resolve().name}/{p.relative_to(path).as_posix()}")
        elif path.is_file():
            found += _in_zip(path, path.name)
        else:
            raise FileNotFoundError(f"--source {path} is not there: give the publisher's folder, or its zip files")
    return found


def _left_out(member: zipfile.ZipInfo) -> bool:
    """Whether a member is skipped: a folder or a hidden file, such as the `._a.png` that macOS puts beside `a.png`."""
    return member.is_dir() or member.filename.rpartition("/")[2].startswith(".")


def _in_zip(path: Path, name: str) -> Iterator[Entry]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a zip, or is truncated: unpack it and give the folder, or download it again")
    archive = zipfile.ZipFile(path)
    for member in archive.infolist():
        if _left_out(member):
            continue
        if member.filename.lower().endswith(".zip"):
            try:
                inner = zipfile.ZipFile(archive.open(member))
            except zipfile.BadZipFile as error:
                inner = f"{name}/{member.filename}"
                raise ValueError(f"{inner} is not a zip, or is truncated ({error}): download it again") from error
            for entry in inner.infolist():
                if not _left_out(entry):
                    yield Entry(f"{name}/{member.filename}/{entry.filename}", (inner, entry.filename))
        else:
            yield Entry(f"{name}/{member.filename}", (archive, member.filename))
