"""From the publishers' label files to class ids: colours, values, thresholds. Each returns a function

    (data: bytes, name: str, size: (height, width)) -> uint8 (H,W)

of a label file that raises BadData for what it does not know: nothing is guessed.
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
    """A decoded image of any size, as stored. Raises BadData where it is none or cut short."""
    try:
        container = container_of_bytes(data[:64])
        if container is None:
            raise ImageError(f"{name} is cut short or no image")
        return stored_image(data, container, name, max_pixels=0)  # sets that are cut into windows hold large images
    except ImageError as error:
        raise BadData(f"{error}: get it again from its publisher") from error


def by_color(colors: Mapping[Color, int], tolerance: int = 0) -> Decode:
    """RGB colours stand for ids. `tolerance`: the farthest a channel may be off (some files were resaved lossily)."""
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
            raise BadData(f"{name} holds colours that stand for nothing (colour, pixels): {worst}")
        return ids

    return decode


def by_value(values: Mapping[int, int]) -> Decode:
    """Stored values stand for ids."""
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
            raise BadData(f"{name} holds values that stand for nothing: {odd}; known are {sorted(values)}")
        return ids

    return decode


def by_value_or_color(values: Mapping[int, int], colors: Mapping[Color, int]) -> Decode:
    """For sets that go round in both forms: one channel is values, three are colours."""
    value, color = by_value(values), by_color(colors)

    def decode(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
        grey = decode_image(data, name).mode in ("L", "P", "I", "I;16")
        return (value if grey else color)(data, name, size)

    return decode


def by_threshold(least: int = 128) -> Decode:
    """Of two classes: 1 where the grey value is `least` or more."""

    def decode(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
        return (np.asarray(decode_image(data, name).convert("L")) >= least).astype(np.uint8)

    return decode


def unchanged(count: int) -> dict[int, int]:
    """Values 0 to count - 1 that already are ids."""
    return {value: value for value in range(count)}
