"""Image files as people have them: the container by its first bytes, side files, limits and errors."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".j2k", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pnm", ".img",
    ".vrt",
)  # fmt: skip
"""Files of a folder that are taken for images. A file that is named itself may have any suffix."""
MAX_PIXELS = 178_956_970
"""Pixels that are decoded at once where nothing else is said: 512 MiB as RGB."""
LIMIT_VARIABLE = "SKYSENSE_O_MAX_PIXELS"

_MAGIC = {
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "JPEG2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "PNM": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
    "HFA": (b"EHFA_HEADER_TAG",),
    "NITF": (b"NITF", b"NSIF"),
    "AAIGrid": (b"ncols", b"NCOLS"),
}
PILLOW = ("TIFF", "PNG", "JPEG", "JPEG2000", "GIF", "BMP", "WEBP", "PNM")
"""Containers that Pillow reads; the others need GDAL."""


class ImageError(ValueError):
    """A file that is no image, or an image that cannot be used; the message names it and the cure."""


def printable(path: str | Path) -> str:
    """A path for people: bytes that are no text are written as \\x.., so that the message can be printed."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class TooManyPixels(ImageError):
    """An image above the limit of `check_pixels`. size: (H,W). limit: pixels."""

    def __init__(self, name: str, size: tuple[int, int], limit: int) -> None:
        super().__init__(
            f"{name} has {size[1]:,} x {size[0]:,} pixels, more than the {limit:,} that are read at once: cut it into"
            f" tiles, or lift the limit (max_pixels=0 in Python, {LIMIT_VARIABLE}=0 before a command, for any number)"
        )
        self.size, self.limit = size, limit


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Whatever a decoder raises in this context becomes one ImageError about `name`."""
    try:
        yield
    except (ImageError, FileNotFoundError, ModuleNotFoundError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory than there is: cut it into tiles") from error
    except Exception as error:  # decoders raise many types on damaged files, and none of them tells more than its text
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ImageError(f"{name} is cut short or damaged ({reason})") from error


def container_of(path: Path) -> str | None:
    """The container of an existing file: a key of _MAGIC, "WEBP", "VRT", "ENVI" (raw with a .hdr), or None.

    Raises:
        FileNotFoundError: no such file. ImageError: empty, or it cannot be opened.
    """
    name = printable(path)
    try:
        if not path.is_file():
            raise FileNotFoundError(f"no image at {name!r}")
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # rights; links in a circle; a zero byte in the name
        raise ImageError(f"{name} cannot be opened ({error})") from error
    if not head:
        raise ImageError(f"{name} is empty (0 bytes)")
    found = container_of_bytes(head)
    if found is None and head.lstrip().startswith(b"<VRTDataset"):
        return "VRT"
    if found is None and (is_beside(path, f"{path.stem}.hdr") or is_beside(path, f"{path.name}.hdr")):
        return "ENVI"
    return found


def container_of_bytes(head: bytes) -> str | None:
    """The container that the first bytes tell, or None."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for kind, heads in _MAGIC.items() if head.startswith(heads)), None)


def is_beside(path: Path, name: str) -> bool:
    """Whether a file of this name lies in the folder of `path`; upper and lower case are the same."""
    if (path.parent / name).exists():
        return True
    try:
        return name.lower() in _names_in(path.parent)
    except OSError:
        return False


def _names_in(folder: Path) -> frozenset[str]:
    changed = folder.stat().st_mtime_ns
    if time.time_ns() - changed < 2e9:  # a file may still come within the same tick of the clock
        return _listed(str(folder), -1, time.time_ns())
    return _listed(str(folder), changed)


@lru_cache(maxsize=8)
def _listed(folder: str, changed: int, now: int = 0) -> frozenset[str]:
    """Lower-case names in a folder, listed once while the folder does not change: it may hold 100,000 files."""
    return frozenset(name.lower() for name in os.listdir(folder))


def check_pixels(name: str, size: tuple[int, int], max_pixels: int | None) -> None:
    """Raise TooManyPixels where an image has more pixels than allowed.

    Args:
        size: (H,W). max_pixels: 0 for any number; None for SKYSENSE_O_MAX_PIXELS, or else MAX_PIXELS.
    """
    if max_pixels is None:
        try:
            max_pixels = int(os.environ.get(LIMIT_VARIABLE, MAX_PIXELS))
        except ValueError as error:
            raise ValueError(f"{LIMIT_VARIABLE} {os.environ[LIMIT_VARIABLE]!r} is no whole number") from error
    if max_pixels and size[0] * size[1] > max_pixels:
        raise TooManyPixels(name, size, max_pixels)


def _once(paths: list[Path]) -> list[Path]:
    """Each file once, under its shortest path: "**" follows links to parent folders again and again."""
    shortest: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: len(path.parts)):
        shortest.setdefault(os.path.realpath(path), path)
    kept = set(shortest.values())
    return [path for path in paths if path in kept]


def find_images(patterns: list[str]) -> list[Path]:
    """Files, all images of folders, and what globs match, without repeats; a plain name is kept to be reported."""
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif glob.has_magic(pattern) and not path.exists():
            matches = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
            found += _once(matches) if "**" in pattern else matches
        else:
            found.append(path)
    if not found:
        raise FileNotFoundError(f"--input {' '.join(patterns)!r} matches no image ({', '.join(SUFFIXES)})")
    return list(dict.fromkeys(found))
