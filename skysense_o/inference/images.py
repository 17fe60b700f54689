"""Reading images as people have them: JPEG, PNG, TIFF; colour, grey, palette, alpha, 16 bits a channel."""

from __future__ import annotations

import glob
import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
STRETCH_PERCENTILES = (2.0, 98.0)


class ImageError(ValueError):
    """A file that is no image, or an image that cannot be used."""


def find_images(patterns: list[str]) -> list[Path]:
    """Files, all images of folders, and what globs match, without repeats; a plain name is kept to be reported."""
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif glob.has_magic(pattern) and not path.exists():
            found += [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
        else:
            found.append(path)
    if not found:
        raise FileNotFoundError(f"--input {' '.join(patterns)!r} matches no image ({', '.join(SUFFIXES)})")
    return list(dict.fromkeys(found))


def read_image(path: str | Path) -> np.ndarray:
    """uint8 (H,W,3), RGB, turned upright as the camera says.

    Raises:
        FileNotFoundError: no such file. ImageError: not an image, cut short, empty, or of a kind that is not read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no image at {str(path)!r}")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes)")
    try:
        with Image.open(path) as image:
            # Pillow would cut colours of 16 bits down to their upper 8 without a word.
            if image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile):
                deep = _read_deep(path)
                if deep is None:
                    raise ImageError(f"{path} is cut short or damaged")
                return as_rgb(deep, str(path))
            image.load()
            return as_rgb(ImageOps.exif_transpose(image), str(path))
    except UnidentifiedImageError as error:
        deep = _read_deep(path)
        if deep is None:
            raise ImageError(f"{path} is not an image that can be read: use {', '.join(SUFFIXES)}") from error
        return as_rgb(deep, str(path))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has too many pixels to be read at once: {error}") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ImageError(f"{path} is cut short or damaged ({error})") from error


def as_rgb(image: Image.Image | np.ndarray, source: str = "the image") -> np.ndarray:
    """uint8 (H,W,3) from a PIL image, or an array (H,W), (H,W,1), (H,W,3) or (H,W,4) of 8 or more bits.

    More than 8 bits are stretched over the whole image, from its 2nd to its 98th percentile, and the log says so.
    Alpha is dropped. Palettes become their colours.
    """
    if isinstance(image, Image.Image):
        deep = image.mode in ("I", "F") or image.mode.startswith("I;")
        image = np.asarray(image if deep or image.mode in ("L", "RGB") else image.convert("RGB"))
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ImageError(f"{source} has shape {np.shape(image)}: expected (H,W), (H,W,3) or (H,W,4), none of it 0")
    array = array[..., :3]
    if array.dtype != np.uint8:
        array = _stretch(array.astype(np.float32), source)
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def _stretch(array: np.ndarray, source: str) -> np.ndarray:
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        raise ImageError(f"{source} has no finite value")
    low, high = np.percentile(finite, STRETCH_PERCENTILES)
    logger.warning("%s has more than 8 bits: values %g to %g are stretched to 0..255", source, low, high)
    scaled = (np.nan_to_num(array, nan=low) - low) * (255.0 / max(high - low, 1e-6))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _read_deep(path: Path) -> np.ndarray | None:
    """What Pillow does not read, or not in full, by OpenCV; None where that fails too."""
    import cv2

    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if array is None:
        return None
    return array[..., 2::-1] if array.ndim == 3 and array.shape[2] >= 3 else array
