"""Decode the publishers' label files into class ids: by colours, by values, or by a threshold.

Each function returns a decoder

    (data: bytes, name: str, size: (height, width)) -> uint8 (H,W)

which raises BadData for a colour or value that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from skysense_o.data.labels import BadData
from skysense_o.image_io import ImageError
from skysense_o.image_io.files import container_of_bytes
from skysense_o.image_io.pillow import stored_image

Decode = Callable[[bytes, str, tuple[int, int]], np.ndarray]
Color = tuple[int, int, int]
UNKNOWN = 254


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image of any size, without conversion.

    Raises:
        BadData: it is not an image, or is truncated.
    """
    try:
        container = container_of_bytes(data[:64])
        if container is None:
            raise ImageError(f"{name} is cut short or not an image")
        return stored_image(data, container, name, max_pixels=0)  # images that are cut into windows may be large
    except ImageError as error:
        raise BadData(f"{error}: download it again from its publisher") from error


def by_color(colors: Mapping[Color, int], tolerance: int = 0) -> Decode:
    """Decode RGB colours.

    Args:
        colors: (red, green, blue) -> id.
        tolerance: largest difference per channel, as some files were saved with lossy compression.
    """
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for color, number in colors.items():
        around = [np.arange(max(0, c - tolerance), min(255, c + tolerance) + 1) for c in color]
        red, green, blue = np.meshgrid(*around, indexing="ij")
        table[(red << 16 | green << 8 | blue).ravel()] = number

    def decode(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
        image = decode_image(data, name)
        if image.mode in ("L", "I", "I;16"):
            raise BadData(f"{name} is a grey image where colours were expected: is it the publisher's label?")
        rgb = np.asarray(image.convert("RGB")).astype(np.uint32)
        ids = table[rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]]
        if (ids == UNKNOWN).any():
            odd, counts = np.unique(rgb[ids == UNKNOWN].astype(np.uint8), axis=0, return_counts=True)
            worst = [(tuple(map(int, odd[i])), int(counts[i])) for i in np.argsort(-counts)[:5]]
            raise BadData(f"{name} has unknown colours (colour, pixels): {worst}")
        return ids

    return decode


def by_value(values: Mapping[int, int]) -> Decode:
    """Decode label values; `values` is value -> id."""
    table = np.full(256, UNKNOWN, np.uint8)
    for value, number in values.items():
        table[value] = number

    def decode(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
        image = decode_image(data, name)
        if image.mode not in ("L", "P", "I", "I;16"):
            raise BadData(f"{name} is a {image.mode} image where one channel of values was expected")
        stored = np.asarray(image)
        ids = table[np.clip(stored, 0, 255)]
        if (ids == UNKNOWN).any() or stored.max() > 255:
            odd = sorted(set(np.unique(stored).tolist()) - set(values))
            raise BadData(f"{name} has unknown values {odd}; the known values are {sorted(values)}")
        return ids

    return decode


def by_value_or_color(values: Mapping[int, int], colors: Mapping[Color, int]) -> Decode:
    """Decode label files of two kinds: images of one channel by `values`, and colour images by `colors`."""
    value, color = by_value(values), by_color(colors)

    def decode(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
        grey = decode_image(data, name).mode in ("L", "P", "I", "I;16")
        return (value if grey else color)(data, name, size)

    return decode


def by_threshold(least: int = 128) -> Decode:
    """Decode two classes: 1 if the grey value is `least` or more, else 0."""

    def decode(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
        return (np.asarray(decode_image(data, name).convert("L")) >= least).astype(np.uint8)

    return decode


def unchanged(count: int) -> dict[int, int]:
    """Map each of the values 0 to `count` - 1 to itself.

    >>> unchanged(3)
    {0: 0, 1: 1, 2: 2}
    """
    return {value: value for value in range(count)}
