"""The code that all datasets/prepare_*.py share: pair the publisher's files, cut and encode them, write the results.

Each script defines a `Recipe`. Images are written to `img_dir`, and labels to `ann_dir` as grey PNG (mode L) whose
pixel values are class ids. The source folder is never written to. An interrupted run resumes if the script runs again.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from skysense_o.data.catalog import spec_of
from skysense_o.data.encode import Decode, decode_image
from skysense_o.data.labels import BadData
from skysense_o.data.zip_source import Entry
from skysense_o.errors import file_error
from skysense_o.text_files import read_lines

Groups = dict[str, str]
Split = Callable[[Groups, int, int], str | None]
DONE = "prepared.txt"


def named_split(groups: Groups, index: int, count: int) -> str | None:
    """The split that an image's path contains, in lower case; "valid" becomes "val".

    >>> named_split({"split": "Valid", "stem": "a"}, 0, 1)
    'val'
    """
    return {"valid": "val"}.get(groups["split"].lower(), groups["split"].lower())


def rgb(data: bytes, name: str) -> np.ndarray:
    """Decode an image -> uint8 (H,W,3); more bands than three are dropped."""
    array = np.asarray(decode_image(data, name))
    return array[..., :3] if array.ndim == 3 and array.shape[2] >= 3 else np.repeat(array[..., None], 3, axis=2)


@dataclass(frozen=True)
class Recipe:
    """How one data set is prepared.

    Args:
        spec: name of the data set; its `DatasetSpec` has the file suffixes and the size of the windows.
        image: regular expression for the end of an image's path, without regard to case. Its named group `split` is
            the split; its other named groups, joined by "_", become the stem. If there are several expressions, the
            first one that matches any file is used.
        label: the same for label files, with the same groups.
        decode: label file -> label values, see `encode`.
        split: (groups, index of the image, number of images) -> split; None leaves the image out.
        read: image file -> uint8 (H,W,3).
        mask: (image, label values) -> label values, with 255 for pixels that have no label according to the image.
        lists: (split, name of the publisher's file that lists its stems) for each split; used in place of `split`.
    """

    spec: str
    image: str | tuple[str, ...]
    label: str | tuple[str, ...]
    decode: Decode
    split: Split = named_split
    read: Callable[[bytes, str], np.ndarray] = rgb
    mask: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    lists: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Pair:
    """An image, its label file (None if there is none), and the split and stem of the output files."""

    split: str
    stem: str
    image: Entry
    label: Entry | None


def pairs_of(recipe: Recipe, entries: list[Entry], val_list: str | Path | None = None) -> list[Pair]:
    """Pair the images of a recipe with their labels, sorted by path.

    Args:
        entries: all files of the source.
        val_list: file that lists the val split, see `read_val_list`; None: the recipe determines the splits.

    Raises:
        FileNotFoundError: no image matches the recipe; the message shows the expression and the first files.
        ValueError: `val_list` cannot be used.
    """
    images, labels = _matches(recipe.image, entries), _matches(recipe.label, entries)
    if not images:
        some = ", ".join(entry.name for entry in entries[:5]) or "nothing"
        raise FileNotFoundError(
            f"no image of {recipe.spec} in --source: paths must end in {recipe.image!r}; there are {some}"
        )
    stems = {key: "_".join(value for name, value in key if name != "split") for key in images}
    val = read_val_list(val_list, set(stems.values())) if val_list else None
    listed = _lists(recipe, entries, set(stems.values())) if val is None else None
    pairs = []
    for index, key in enumerate(sorted(images, key=_natural)):
        stem = stems[key]
        if val is not None:
            split = "val" if stem in val else "train"
        else:
            split = listed.get(stem) if listed else recipe.split(dict(key), index, len(images))
        if split is not None:
            pairs.append(Pair(split, stem, images[key], labels.get(key)))
    return pairs


def _matches(patterns: str | tuple[str, ...], entries: list[Entry]) -> dict[tuple, Entry]:
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        compiled, found = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE), {}
        for entry in entries:
            match = compiled.search(entry.name)
            if match:
                found.setdefault(tuple(match.groupdict().items()), entry)
        if found:
            return found
    return {}


def _natural(key: tuple) -> list:
    """A sorting key that compares numbers in names by value."""
    return [[int(p) if p.isdigit() else p for p in re.split(r"(\d+)", value)] for _, value in key]


def _lists(recipe: Recipe, entries: list[Entry], stems: Collection[str]) -> dict[str, str] | None:
    """Stem -> split, by the publisher's lists; None if the recipe has none."""
    if not recipe.lists:
        return None
    splits: dict[str, str] = {}
    for split, name in recipe.lists:
        entry = next((e for e in entries if e.name.rpartition("/")[2].lower() == name), None)
        if entry is None:
            raise FileNotFoundError(
                f"{recipe.spec}: no {name} in --source, which lists its {split} split: add it, or give --val-list"
            )
        splits |= dict.fromkeys(_stems(entry.read().decode("utf-8-sig").split("\n"), stems, entry.name), split)
    return splits


def read_val_list(path: str | Path, stems: Collection[str]) -> set[str]:
    """Read a list of images for the val split: one stem or file name per line, which may contain spaces and dots.

    Args:
        path: file of the list.
        stems: the stems of all images.

    Raises:
        ValueError: a line is not the stem of an image, or there are no lines.
    """
    found = set(_stems(read_lines(path), stems, str(path)))
    lost = sorted(found - set(stems))
    if lost or not found:
        some = f"{lost[0]!r}, which is not an image" if lost else "no line"
        raise ValueError(f"--val-list {path} has {some}: write one stem per line, such as {min(stems, default='a')!r}")
    return found


def _stems(lines: Iterable[str], stems: Collection[str], source: str) -> Iterator[str]:
    """The stem in each line of a list. A line may be a stem, which can contain dots, a file name, or a path."""
    for line in filter(None, map(str.strip, lines)):
        name = line.replace("\\", "/").rpartition("/")[2]
        yield name if name in stems else Path(name).stem


def windows(height: int, width: int, crop: tuple[int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Windows that cover an image; the last windows are shifted to end at the image's borders.

    Args:
        height, width: size of the image, in pixels.
        crop: width, height and overlap of the windows, in pixels; (0, 0, 0): one window.

    Yields:
        half-open boxes (x0, y0, x1, y1).

    >>> list(windows(4, 10, (6, 4, 0)))
    [(0, 0, 6, 4), (4, 0, 10, 4)]
    """
    wide, high, overlap = crop
    for y in _starts(height, high or height, overlap):
        for x in _starts(width, wide or width, overlap):
            yield x, y, min(x + (wide or width), width), min(y + (high or height), height)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    last = max(0, length - size)
    return sorted({*range(0, last + 1, size - overlap), last})


def prepare_pair(recipe: Recipe, pair: Pair, output: Path) -> list[str]:
    """Read, encode, cut and write one image and its labels.

    Returns:
        the stems of the files that were written.

    Raises:
        BadData: the image or its labels cannot be used.
    """
    spec = spec_of(recipe.spec)
    data = pair.image.read()
    image = recipe.read(data, pair.image.name)
    ids = recipe.decode(pair.label.read(), pair.label.name, image.shape[:2])
    if ids.shape != image.shape[:2]:
        raise BadData(f"{pair.label.name} has the size {ids.shape}, but its image {image.shape[:2]} (height, width)")
    if recipe.mask is not None:
        ids = recipe.mask(image, ids)
    images, labels = (output / kind / pair.split for kind in ("img_dir", "ann_dir"))
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    whole = spec.crop == (0, 0, 0)
    written = []
    for x0, y0, x1, y1 in windows(*ids.shape, spec.crop):
        stem = pair.stem if whole else f"{pair.stem}_{x0}_{y0}_{x1}_{y1}"
        target = images / (stem + spec.image_suffix)
        if whole and Path(pair.image.name).suffix.lower() == spec.image_suffix:
            _write(target, data)  # unchanged: a JPEG must not be compressed again
        else:
            _write(target, _packed(image[y0:y1, x0:x1], "JPEG" if spec.image_suffix == ".jpg" else "PNG"))
        _write(labels / f"{stem}.png", _packed(ids[y0:y1, x0:x1].astype(np.uint8), "PNG"))
        written.append(stem)
    return written


def _packed(array: np.ndarray, form: str) -> bytes:
    """Encode an image; uint8 (H,W) gives mode L."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(stream, form, quality=95)
    return stream.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write to a temporary name and rename, so that a file with its final name is complete."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def prepare_all(recipe: Recipe, pairs: list[Pair], output: Path) -> tuple[int, list[str]]:
    """Prepare all pairs, except those that an earlier call has finished.

    Returns:
        the number of windows of this and earlier calls, and the error messages.
    """
    output.mkdir(parents=True, exist_ok=True)
    spec = spec_of(recipe.spec)
    mark = hashlib.sha256(repr((spec.crop, spec.image_suffix, recipe.label)).encode()).hexdigest()[:12]
    done = _done(output / DONE, mark)
    count, errors = 0, []
    with open(output / DONE, "a", encoding="utf-8") as journal:
        for pair in tqdm(pairs, desc=recipe.spec, unit="image"):
            name = f"{pair.split}/{pair.stem}"
            last = done.get(name)
            if last and (output / "ann_dir" / pair.split / f"{last[1]}.png").is_file():
                count += last[0]
                continue
            if pair.label is None:
                errors.append(f"{pair.image.name} has no label file")
                continue
            try:
                written = prepare_pair(recipe, pair, output)
            except Exception as error:  # one bad file does not end the batch
                errors.append(file_error(error, pair.image.name))
                continue
            count += len(written)
            journal.write(f"{mark}\t{name}\t{len(written)}\t{written[-1]}\n")
            journal.flush()
    return count, errors


def _done(path: Path, mark: str) -> dict[str, tuple[int, str]]:
    if not path.is_file():
        return {}
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").split("\n")]
    rows = [row for row in rows if len(row) == 4 and row[2].isdecimal()]  # a full disk may cut a line
    return {row[1]: (int(row[2]), row[3]) for row in rows if row[0] == mark}
