"""Images and label images of data sets: reading them, and what is said when they are wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from skysense_o.image_io import ImageError, RGBImage, read_image
from skysense_o.image_io.files import container_of
from skysense_o.image_io.orientation import UPRIGHT, upright, upright_size
from skysense_o.image_io.pillow import stored_image, upright_image
from skysense_o.sample import IGNORE

SKIP = "or set DATALOADER.SKIP_BAD True to pass it over"


class BadData(ValueError):
    """A file of a data set that cannot be used; the message names the file and the cure."""


def load_image(source: str | Path | bytes, name: str | None = None) -> RGBImage:
    """An image of a data set, as `image_io.read_image` reads it.

    Raises:
        BadData: no such file, not an image, or cut short.
    """
    try:
        return read_image(source, name=name)
    except FileNotFoundError as error:
        raise BadData(f"{source} is missing: put it back, {SKIP}") from error
    except ImageError as error:
        raise BadData(f"{error}; mend it or get it again, {SKIP}") from error


def read_labels(path: str | Path, size: tuple[int, int] | None = None, orientation: int = UPRIGHT) -> np.ndarray:
    """A label image as it is stored, (H,W), of unsigned integers, turned as its image is.

    Args:
        size: (H,W) of its image, upright. orientation: of its image, by EXIF. Labels of the image's stored size are
            turned with it; labels that have its upright size already are left.

    Raises:
        BadData: no image, a colour image, or another size than its image.
    """
    try:
        image = stored_image(Path(path), container_of(Path(path)) or "unknown", str(path), max_pixels=0)
    except FileNotFoundError as error:
        raise BadData(f"{path} is missing: put it back, {SKIP}") from error
    except ImageError as error:
        raise BadData(f"{error}; mend it or get it again, {SKIP}") from error
    if image.mode not in ("L", "P", "I", "I;16"):
        raise BadData(
            f"{path} is a {image.mode} image: labels must be one channel of class ids; the data set's"
            f" datasets/prepare_*.py turns colours into ids, {SKIP}"
        )
    labels = np.asarray(upright_image(image))
    if size is not None and labels.shape != size and labels.shape == upright_size(size, orientation):
        labels = np.ascontiguousarray(upright(labels, orientation))
    if size is not None and labels.shape != size:
        raise BadData(f"{path} is {labels.shape}, its image {size} (height, width): they must be equal, {SKIP}")
    return labels


def id_table(names: int, ignore: tuple[int, ...] = (IGNORE,), offset: int = 0) -> np.ndarray:
    """uint16 (65536,): stored label value -> class id 0..names-1, IGNORE, or WRONG.

    `ignore` are stored values; IGNORE itself always belongs to no class, unless it is that of a class.
    """
    table = np.full(65536, WRONG, np.uint16)
    table[IGNORE] = IGNORE
    table[offset : offset + names] = np.arange(names)
    table[list(ignore)] = IGNORE
    return table


WRONG = 65535
"""In an `id_table`: a stored value that means nothing."""


def to_ids(labels: np.ndarray, table: np.ndarray, names: int, path: str) -> np.ndarray:
    """Stored labels (H,W) -> ids, uint8 (H,W): 0..names-1 or IGNORE.

    Raises:
        BadData: stored values that mean nothing in this data set.
    """
    byte = labels.dtype == np.uint8
    means_nothing = table == WRONG
    if (
        cv2.LUT(labels, means_nothing[:256].view(np.uint8)) if byte else means_nothing[np.clip(labels, 0, 65535)]
    ).any():
        wrong = [v for v in np.unique(labels).tolist() if v > 65534 or means_nothing[v]]
        known = np.flatnonzero((table != WRONG) & (table != IGNORE))
        raise BadData(
            f"{path} holds ids {wrong}: permitted are {known.min()} to {known.max()} and"
            f" {_listed(np.flatnonzero(table == IGNORE))} (ignored); see tools/check_dataset.py, {SKIP}"
        )
    return cv2.LUT(labels, table[:256].astype(np.uint8)) if byte else table[labels].astype(np.uint8)


def _listed(values: np.ndarray) -> str:
    return ", ".join(str(v) for v in values)
