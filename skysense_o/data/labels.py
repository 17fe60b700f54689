"""Read images and label images of data sets; errors name the file and the cure."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from skysense_o.image_io import ImageError, RGBImage, read_image
from skysense_o.image_io.files import container_of
from skysense_o.image_io.orientation import UPRIGHT, upright, upright_size
from skysense_o.image_io.pillow import stored_image, upright_image
from skysense_o.sample import IGNORE

SKIP = "or set DATALOADER.SKIP_BAD True to skip it"


class BadData(ValueError):
    """A file of a data set cannot be used; the message names the file and the cure."""


def load_image(source: str | Path | bytes, name: str | None = None) -> RGBImage:
    """Read an image of a data set with `image_io.read_image`.

    Args:
        source: path, or the bytes of the file.
        name: the image's name in error messages; default: the path.

    Raises:
        BadData: the file does not exist, is not an image, or is truncated.
    """
    try:
        return read_image(source, name=name)
    except FileNotFoundError as error:
        raise BadData(f"{source} is missing: put it back, {SKIP}") from error
    except ImageError as error:
        raise BadData(f"{error}; repair it or download it again, {SKIP}") from error


def read_labels(path: str | Path, size: tuple[int, int] | None = None, orientation: int = UPRIGHT) -> np.ndarray:
    """Read a label image, with the same EXIF rotation as its image.

    Args:
        path: path of the label image.
        size: (H,W) of the image after its EXIF rotation; None: not checked.
        orientation: EXIF orientation of the image. Labels with the image's size before rotation are rotated
            too; labels that already have the rotated size are not.

    Returns:
        label values, unsigned integers (H,W).

    Raises:
        BadData: the file is missing or not an image, has colours, or has not the size of its image.
    """
    try:
        image = stored_image(Path(path), container_of(Path(path)) or "unknown", str(path), max_pixels=0)
    except FileNotFoundError as error:
        raise BadData(f"{path} is missing: put it back, {SKIP}") from error
    except ImageError as error:
        raise BadData(f"{error}; repair it or download it again, {SKIP}") from error
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise BadData(
            f"{path} is a {image.mode} image: labels must be one channel of class ids; the data set's"
            f" datasets/prepare_*.py turns colours into ids, {SKIP}"
        )
    labels = np.asarray(upright_image(image))
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.dtype.kind == "i" and labels.min(initial=0) < 0:
        raise BadData(f"{path} holds the id {labels.min()}: ids are 0 or more; write 255 for unknown pixels, {SKIP}")
    if size is not None and labels.shape != size and labels.shape == upright_size(size, orientation):
        labels = np.ascontiguousarray(upright(labels, orientation))
    if size is not None and labels.shape != size:
        raise BadData(f"{path} has the size {labels.shape}, but its image {size} (height, width): correct it, {SKIP}")
    return labels


def id_table(names: int, ignore: tuple[int, ...] = (IGNORE,), offset: int = 0) -> np.ndarray:
    """Table from label values to class ids.

    Args:
        names: number of classes.
        ignore: label values that belong to no class. IGNORE is one of them, unless a class has that value.
        offset: label value of class 0.

    Returns:
        uint16 (65536,): class id 0..names-1, IGNORE, or WRONG.

    >>> id_table(2, ignore=(0,), offset=1)[[0, 1, 2, 3, 255]].tolist()
    [255, 0, 1, 65535, 255]
    """
    table = np.full(65536, WRONG, np.uint16)
    table[IGNORE] = IGNORE
    table[offset : offset + names] = np.arange(names)
    table[list(ignore)] = IGNORE
    return table


WRONG = 65535
"""Entry of an `id_table` for label values without a meaning."""


def to_ids(labels: np.ndarray, table: np.ndarray, names: int, path: str) -> np.ndarray:
    """Convert label values to class ids.

    Args:
        labels: label values, unsigned integers (H,W).
        table: see `id_table`.
        names: number of classes.
        path: path of the label image, for error messages.

    Returns:
        uint8 (H,W): 0..names-1 or IGNORE.

    Raises:
        BadData: some label values have no meaning in this data set.
    """
    byte = labels.dtype == np.uint8
    meaningless = table == WRONG
    if (cv2.LUT(labels, meaningless[:256].view(np.uint8)) if byte else meaningless[np.clip(labels, 0, 65535)]).any():
        wrong = [v for v in np.unique(labels).tolist() if v > 65534 or meaningless[v]]
        known = np.flatnonzero((table != WRONG) & (table != IGNORE))
        raise BadData(
            f"{path} holds ids {wrong}: they must be {known.min()} to {known.max()} or"
            f" {_listed(np.flatnonzero(table == IGNORE))} (ignored); see tools/check_dataset.py, {SKIP}"
        )
    return cv2.LUT(labels, table[:256].astype(np.uint8)) if byte else table[labels].astype(np.uint8)


def _listed(values: np.ndarray) -> str:
    return ", ".join(str(v) for v in values)
