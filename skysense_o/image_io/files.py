"""Image files: find a file's format from its first bytes, find side files, limit the number of pixels; errors."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, count
from pathlib import Path

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".j2k", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pnm", ".img",
    ".vrt",
)  # fmt: skip
"""Suffixes of the files that are read from a folder. A file that is named explicitly may have any suffix."""
MAX_PIXELS = 178_956_970
"""Default limit of pixels that are decoded at once; as RGB they take 512 MiB."""
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
"""File formats that Pillow reads; others need GDAL."""


class ImageError(ValueError):
    """The file is not an image, or the image cannot be used. The message names the file and what to do."""


def printable(path: str | Path) -> str:
    """A path as text that can be printed: bytes that are not UTF-8 are written as \\x.. .

    >>> printable("a/b.jpg")
    'a/b.jpg'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class TooManyPixels(ImageError):
    """The image has more pixels than the limit of `check_pixels`.

    Attributes:
        size: (H,W). limit: in pixels.
    """

    def __init__(self, name: str, size: tuple[int, int], limit: int) -> None:
        super().__init__(
            f"{name} has {size[1]:,} x {size[0]:,} pixels, more than the limit of {limit:,}: cut it into tiles, or"
            f" remove the limit (max_pixels=0 in Python, {LIMIT_VARIABLE}=0 before a command)"
        )
        self.size, self.limit = size, limit


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn every error of a decoder in this context into an ImageError that names the image."""
    try:
        yield
    except (ImageError, FileNotFoundError, ModuleNotFoundError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory than there is: cut it into tiles") from error
    except Exception as error:  # decoders raise many types of errors
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ImageError(f"{name} is cut short or damaged ({reason})") from error


def container_of(path: Path) -> str | None:
    """Determine the format of an image file from its first bytes.

    Returns:
        A key of _MAGIC, "WEBP", "VRT", "ENVI" (raw values with a .hdr file), or None if unknown.

    Raises:
        FileNotFoundError: the file does not exist.
        ImageError: the file is empty or cannot be opened.
    """
    name = printable(path)
    try:
        if not path.is_file():
            raise FileNotFoundError(f"no image at {name!r}")
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # no permission; a loop of links; a zero byte in the name
        raise ImageError(f"{name} cannot be opened ({error})") from error
    if not head:
        raise ImageError(f"{name} is empty (0 bytes)")
    container = container_of_bytes(head)
    if container is None and head.lstrip().startswith(b"<VRTDataset"):
        return "VRT"
    if container is None and (is_beside(path, f"{path.stem}.hdr") or is_beside(path, f"{path.name}.hdr")):
        return "ENVI"
    return container


def container_of_bytes(head: bytes) -> str | None:
    """The format of a file with these first bytes; None if unknown, or if they do not show it (VRT, ENVI)."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for kind, heads in _MAGIC.items() if head.startswith(heads)), None)


def is_beside(path: Path, name: str) -> bool:
    """Whether the folder of `path` contains a file of this name; case is ignored."""
    if (path.parent / name).exists():
        return True
    try:
        return name.lower() in _names_in(path.parent)
    except OSError:
        return False


def _names_in(folder: Path) -> frozenset[str]:
    changed = folder.stat().st_mtime_ns
    if time.time_ns() - changed < 2e9:
        # A file that is added now may leave the folder's time as it is. So no earlier list is used: `now` is a new key.
        return _listed(str(folder), -1, time.time_ns())
    return _listed(str(folder), changed)


@lru_cache(maxsize=8)
def _listed(folder: str, changed: int, now: int = 0) -> frozenset[str]:
    """Names in a folder, in lower case; cached until the folder changes, because it may have 100,000 files."""
    return frozenset(name.lower() for name in os.listdir(folder))


def check_pixels(name: str, size: tuple[int, int], max_pixels: int | None) -> None:
    """Check the number of pixels of an image.

    Args:
        name: the image's name, for messages.
        size: (H,W).
        max_pixels: the limit; 0 for no limit, None for the environment variable SKYSENSE_O_MAX_PIXELS or MAX_PIXELS.

    Raises:
        TooManyPixels: the image has more pixels than the limit.
        ValueError: the environment variable is not a number.
    """
    if max_pixels is None:
        try:
            max_pixels = int(os.environ.get(LIMIT_VARIABLE, MAX_PIXELS))
        except ValueError as error:
            raise ValueError(f"{LIMIT_VARIABLE} {os.environ[LIMIT_VARIABLE]!r} is not a whole number") from error
    if max_pixels and size[0] * size[1] > max_pixels:
        raise TooManyPixels(name, size, max_pixels)


def _once(paths: list[Path]) -> list[Path]:
    """Keep each file once, under its shortest path, because "**" follows links to parent folders again and again."""
    shortest: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: len(path.parts)):
        shortest.setdefault(os.path.realpath(path), path)
    kept = set(shortest.values())
    return [path for path in paths if path in kept]


def images_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files of a folder with one of these suffixes (given in lower case), sorted; hidden files are left out.

    macOS puts a hidden `._a.jpg`, which is not an image, beside each `a.jpg` on foreign disks and in zip files.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and not path.is_dir()
    )


def find_images(patterns: list[str]) -> list[Path]:
    """Find the images of a command line, without duplicates.

    Args:
        patterns: files, folders (all images in them) and globs. A file that does not exist is returned as well, so that
            reading it reports the error.

    Raises:
        FileNotFoundError: nothing matches.

    >>> [path.name for path in find_images(["demo/*.jpg"])]
    ['fields_30m.jpg', 'yellowstone_0.15m.jpg', 'yellowstone_0.25m.jpg', 'yellowstone_0.4m.jpg']
    """
    paths: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            paths += images_in(path, SUFFIXES)
        elif glob.has_magic(pattern) and not path.exists():
            matches = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
            paths += _once(matches) if "**" in pattern else matches
        else:
            paths.append(path)
    if not paths:
        raise FileNotFoundError(f"{' '.join(patterns)!r} matches no image ({', '.join(SUFFIXES)})")
    return list(dict.fromkeys(paths))


def stems_of(paths: list[Path]) -> list[str]:
    """Stems of the images' result files. Equal stems get the suffix or folder too, so that no file is overwritten.

    >>> stems_of([Path("a/x.tif"), Path("a/x.png"), Path("b/x.tif")])
    ['x', 'x_png', 'x_tif']
    """
    stems, taken = [], set()
    for path in paths:
        own = (path.stem, path.name.replace(".", "_"), f"{path.parent.name}_{path.stem}")
        candidates = chain(own, (f"{path.stem}_{number}" for number in count(2)))
        stem = next(c for c in candidates if c.lower() not in taken)
        taken.add(stem.lower())  # some file systems ignore case
        stems.append(stem)
    return stems
