"""Images from people one does not know: measured before they are read, and told about without a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skysense_o.errors import USER_ERRORS, message
from skysense_o.image_io import ImageError, has_geo, is_georeferenced, printable, read_image
from skysense_o.image_io.files import TooManyPixels

MOST_PIXELS = 4_000_000
"""The mini model takes about 4 s and 2 GiB for so many on two cores."""
UPLOADS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
"""Kinds that the page takes: those that are one file and refer to no other."""


@dataclass(frozen=True)
class OpenedImage:
    """What people see: rgb uint8 (H,W,3). name: of the file, without its folder.

    scene: the file itself where it has a place on the ground. valid: bool (H,W), or None where all pixels are; the
    others are white in `rgb`. notes: what was done to show it.
    """

    rgb: np.ndarray
    name: str
    scene: Path | None = None
    valid: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        return Path(self.name).stem


def open_upload(path: str | Path, most_pixels: int | None = MOST_PIXELS, alone: bool = True) -> OpenedImage:
    """Read an image, or a GeoTIFF with its place where the extra "geo" is installed.

    most_pixels: None for any. alone: refuse kinds that refer to other files; see `read_image`.

    Raises:
        ImageError: more pixels than allowed (found without reading them), or nothing that can be read; the text
            holds the file's name and no folder.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        image = read_image(path, max_pixels=most_pixels or 0, alone=alone)
        scene = path if has_geo() and is_georeferenced(path) else None
        return OpenedImage(image.filled((255, 255, 255)), printable(path.name), scene, image.valid, image.record.notes)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no image at {printable(path.name)!r}") from error
    except TooManyPixels as error:
        height, width = error.size
        raise ImageError(
            f"{printable(path.name)} has {width:,} x {height:,} pixels and {error.limit:,} in all are allowed here: cut"
            " it, make it smaller, or use demo/demo.py, which takes any size"
        ) from error
    except USER_ERRORS as error:
        text = message(error).replace(printable(path), printable(path.name))
        raise ImageError(text.replace(printable(path.parent), "")) from error
