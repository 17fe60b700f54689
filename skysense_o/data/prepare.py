"""What all datasets/prepare_*.py share: pair the publisher's files, cut, encode, write `img_dir` and `ann_dir`.

A script is its publisher's description (cited) and a `Recipe`. Labels are written as PNG of mode L: a pixel's value is
its class. Nothing is written where it was read; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from skysense_o.data.catalog import spec_of
from skysense_o.data.encode import Decode, decode_image
from skysense_o.data.labels import BadData
from skysense_o.data.zip_source import Entry, entries_of
from skysense_o.errors import exit_code

Groups = dict[str, str]
Split = Callable[[Groups, int, int], str | None]
DONE = "prepared.txt"


def named_split(groups: Groups, place: int, count: int) -> str | None:
    """The split that the path says, in lower case; "valid" is val."""
    return {"valid": "val"}.get(groups["split"].lower(), groups["split"].lower())


def rgb(data: bytes, name: str) -> np.ndarray:
    """uint8 (H,W,3); further bands are dropped."""
    array = np.asarray(decode_image(data, name))
    return array[..., :3] if array.ndim == 3 and array.shape[2] >= 3 else np.repeat(array[..., None], 3, axis=2)


@dataclass(frozen=True)
class Recipe:
    """How one data set is prepared.

    Args:
        spec: name in the table; says suffixes and crop.
        image, label: regular expressions for the end of a file's path, whatever its case, with the same named groups:
            `split`, and those that together are the stem. Alternatives: the first that matches any file is used.
        decode: label file -> stored ids (see `encode`).
        split: (groups, place among all sorted, count) -> split, or None to leave an image out.
        read: image file -> uint8 (H,W,3). mask: (image, ids) -> ids, for ignored pixels that only the image shows.
        lists: files of stems, split -> file name, that publishers ship in place of folders; `split` is not asked then.
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
    """An image with its label file, and where it goes."""

    split: str
    stem: str
    image: Entry
    label: Entry | None


def pairs_of(recipe: Recipe, entries: list[Entry], val: set[str] | None = None) -> list[Pair]:
    """All images that the recipe takes, sorted; `label` is None where there is none.

    Args:
        val: stems of the val split, in place of the recipe's rule.

    Raises:
        FileNotFoundError: no image fits; shows what was looked for and what is there.
    """
    images, labels = _matches(recipe.image, entries), _matches(recipe.label, entries)
    if not images:
        some = ", ".join(entry.name for entry in entries[:5]) or "nothing"
        raise FileNotFoundError(
            f"no image of {recipe.spec} in --source: paths must end in {recipe.image!r}; there are {some}"
        )
    listed = _lists(recipe, entries) if val is None else None
    pairs = []
    for place, key in enumerate(sorted(images, key=_natural)):
        groups = dict(key)
        stem = "_".join(value for name, value in groups.items() if name != "split")
        if val is not None:
            split = "val" if stem in val else "train"
        else:
            split = listed.get(stem) if listed else recipe.split(groups, place, len(images))
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
    """Numbers in names sort as numbers."""
    return [[int(p) if p.isdigit() else p for p in re.split(r"(\d+)", value)] for _, value in key]


def _lists(recipe: Recipe, entries: list[Entry]) -> dict[str, str] | None:
    """Stem -> split, by the lists that the publisher ships."""
    if not recipe.lists:
        return None
    splits: dict[str, str] = {}
    for split, name in recipe.lists:
        entry = next((e for e in entries if e.name.rpartition("/")[2].lower() == name), None)
        if entry is None:
            raise FileNotFoundError(
                f"{recipe.spec}: no {name} in --source, which says its {split} split: add it, or give --val-list"
            )
        splits.update((Path(line.strip()).stem, split) for line in entry.read().decode().splitlines() if line.strip())
    return splits


def windows(height: int, width: int, crop: tuple[int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    """(x0, y0, x1, y1) that cover an image; the last ones are moved in to end at its borders. (0, 0, 0): one."""
    wide, high, overlap = crop
    for y in _starts(height, high or height, overlap):
        for x in _starts(width, wide or width, overlap):
            yield x, y, min(x + (wide or width), width), min(y + (high or height), height)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    last = max(0, length - size)
    return sorted({*range(0, last + 1, size - overlap), last})


def prepare_pair(recipe: Recipe, pair: Pair, output: Path) -> list[str]:
    """Read, encode, cut and write one image; the names of what was written."""
    spec = spec_of(recipe.spec)
    data = pair.image.read()
    image = recipe.read(data, pair.image.name)
    ids = recipe.decode(pair.label.read(), pair.label.name, image.shape[:2])
    if ids.shape != image.shape[:2]:
        raise BadData(f"{pair.label.name} is {ids.shape}, its image {image.shape[:2]} (height, width)")
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
            _write(target, data)  # as it is: a JPEG is not decoded and packed again
        else:
            _write(target, _packed(image[y0:y1, x0:x1], "JPEG" if spec.image_suffix == ".jpg" else "PNG"))
        _write(labels / f"{stem}.png", _packed(ids[y0:y1, x0:x1].astype(np.uint8), "PNG"))
        written.append(stem)
    return written


def _packed(array: np.ndarray, form: str) -> bytes:
    """The file of an image; (H,W) of uint8 gives mode L."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(stream, form, quality=95)
    return stream.getvalue()


def _write(path: Path, data: bytes) -> None:
    """To a temporary name, then renamed: what has its name is whole."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def prepare_all(recipe: Recipe, pairs: list[Pair], output: Path) -> tuple[int, list[str]]:
    """Write all pairs; (windows written now or before, errors). What an earlier call finished is passed over."""
    output.mkdir(parents=True, exist_ok=True)
    spec = spec_of(recipe.spec)
    mark = hashlib.sha256(repr((spec.crop, spec.image_suffix, recipe.label)).encode()).hexdigest()[:12]
    done = _done(output / DONE, mark)
    count, errors = 0, []
    with open(output / DONE, "a") as journal:
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
            except BadData as error:
                errors.append(str(error))
                continue
            count += len(written)
            journal.write(f"{mark}\t{name}\t{len(written)}\t{written[-1]}\n")
            journal.flush()
    return count, errors


def _done(path: Path, mark: str) -> dict[str, tuple[int, str]]:
    if not path.is_file():
        return {}
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return {row[1]: (int(row[2]), row[3]) for row in rows if len(row) == 4 and row[0] == mark}


def parser(description: str, choices: dict[str, Recipe] | None = None, option: str = "") -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--source", nargs="+", required=True, metavar="PATH", help="what the publisher ships: folders, zips")
    p.add_argument("--output", metavar="DIR", help="default: where the loader looks, below DETECTRON2_DATASETS")
    p.add_argument("--val-list", metavar="FILE", help="one stem a line: these are val and the rest train")
    if choices:
        p.add_argument(option, required=True, choices=sorted(choices), dest="choice")
    return p


def run_recipe(description: str, recipe: Recipe | dict[str, Recipe], option: str = "") -> int:
    """The command line of a script: 0, or 1 where some images could not be prepared."""
    choices = recipe if isinstance(recipe, dict) else None
    args = parser(description, choices, option).parse_args()
    recipe = choices[args.choice] if choices else recipe
    output = Path(args.output) if args.output else spec_of(recipe.spec).root
    for source in map(Path, args.source):
        if source.is_dir() and (output.resolve() == source.resolve() or source.resolve() in output.resolve().parents):
            raise ValueError(f"--output {output} is in --source {source}: what was published stays as it is; elsewhere")
    val = {Path(line.strip()).stem for line in Path(args.val_list).read_text().split()} if args.val_list else None
    pairs = pairs_of(recipe, entries_of(args.source), val)
    count, errors = prepare_all(recipe, pairs, output)
    splits = {split: sum(p.split == split for p in pairs) for split in dict.fromkeys(p.split for p in pairs)}
    said = ", ".join(f"{split} {number}" for split, number in splits.items())
    print(f"{len(pairs)} images ({said}), {count} windows in {output}")
    print(f"Check them: python tools/check_dataset.py {recipe.spec}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def main(description: str, recipe: Recipe | dict[str, Recipe], option: str = "") -> int:
    """`run`, ending on a user's mistake in one line."""
    return exit_code(lambda: run_recipe(description, recipe, option))
