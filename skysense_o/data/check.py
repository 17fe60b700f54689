"""Check every file of a data set: report problems, and make a manifest to compare copies. Changes nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from skysense_o.data.captions import load_record_image
from skysense_o.data.catalog import find
from skysense_o.data.classes import load_classes
from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.data.image_hash import alike, image_hash
from skysense_o.data.labels import BadData, id_table, read_labels, to_ids
from skysense_o.data.records import read_split
from skysense_o.data.weak.shapes import UNKNOWN_SHAPE
from skysense_o.image_io import RGBImage
from skysense_o.sample import IGNORE


@dataclass
class SplitReport:
    """The content of one split. `counts`: class or kind of question -> [count of pixels or objects, of images]."""

    name: str
    images: int = 0
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)
    ignored: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)
    sha256: str = ""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hashes: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    readings: dict[str, list[tuple[float, float]]] = field(default_factory=dict, repr=False)
    """Conversions of images that are not plain 8 bits: description -> (low, high) of each stretch."""

    def manifest(self) -> dict:
        """A summary that is equal for two copies of the same data."""
        total = sum(count for count, _ in self.counts.values()) or 1
        return {
            "name": self.name,
            "images": self.images,
            "smallest": list(self.smallest),
            "largest": list(self.largest),
            "ignored": self.ignored,
            "classes": {
                name: {"count": n, "share": round(n / total, 6), "images": p} for name, (n, p) in self.counts.items()
            },
            "sha256": self.sha256,
        }


def check_data_set(name: str, limit: int | None = None, progress: bool = True) -> list[SplitReport]:
    """Check the splits that a name stands for. If it is a whole data set, skip splits that overlap others by intention.

    Args:
        name: see `catalog.find`.
        limit: check only this many records per split, evenly spaced; None: all.
        progress: show a progress bar.

    Raises:
        KeyError, FileNotFoundError: as `records_of`.
    """
    splits = find(name)
    plain = [(spec, s) for spec, s in splits if s.partition("_")[0] in ("train", "val", "test", "tier3", "hold", "all")]
    if len(splits) > 1 and plain:
        parted = {s for _, s in plain} - {"all"}
        splits = [(spec, s) for spec, s in plain if s != "all" or not parted]
    reports, missing = [], None
    for spec, split in splits:
        try:
            reports.append(check_split(spec, split, limit, progress))
        except FileNotFoundError as error:  # of several splits, some may not be installed
            missing = missing or error
            if len(splits) > 1:
                own = Path(spec.key).is_absolute()
                said = {"problems" if own else "notes": [str(error).split(": get ")[0]]}
                reports.append(SplitReport(f"{spec.name}_{split}", **said))
    if missing and not any(report.images for report in reports):
        raise missing
    for one, two in combinations([r for r in reports if r.hashes], 2):
        _compare(one, two)
    return reports


def check_split(spec: DatasetSpec, split: str, limit: int | None = None, progress: bool = True) -> SplitReport:
    """Check every image and label of one split."""
    report = SplitReport(f"{spec.name}_{split}")
    records, missing = read_split(spec, split)
    report.problems += missing
    if limit and limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).astype(int)]
        report.notes.append(f"only {limit} records were checked")
    expected = spec.counts.get(split)
    if expected and expected != len(records) and not limit:
        report.notes.append(f"{expected} images are expected, {len(records)} are there")
    if spec.class_table_name:
        report.counts = {name: [0, 0] for name in load_classes(spec.class_table_name).classes}
    digest, seen = hashlib.sha256(), {}
    for record in tqdm(records, desc=report.name, unit="record", disable=not progress):
        try:
            _look(spec, record, report, digest, seen)
        except (BadData, ValueError) as error:
            report.problems.append(str(error))
    report.images, report.sha256 = len(seen), digest.hexdigest()
    report.notes += [_reading_note(kind, stretches, len(seen)) for kind, stretches in report.readings.items()]
    empty = [name for name, (count, _) in report.counts.items() if not count]
    if empty and spec.task in ("segmentation", "classification"):
        report.notes.append(f"{len(empty)} classes that never occur: {', '.join(empty)}")
    labelled = report.ignored + sum(count for count, _ in report.counts.values())
    if spec.task == "segmentation" and report.ignored:
        share = 100 * report.ignored / labelled
        report.notes.append(f"{share:.1f} % of the pixels are ignored or have no class")
    if Path(spec.key).is_absolute() and spec.class_table_name and not limit and split.startswith(("train", "all")):
        report.problems += _classes_that_never_occur(spec, empty, report.ignored)
    return report


def _classes_that_never_occur(spec: DatasetSpec, empty: list[str], ignored: int) -> list[str]:
    """Problems of a user's own training split: classes of dataset.yaml that never occur, with the cause."""
    table, problems = load_classes(spec.class_table_name), []
    for value, (name, background) in enumerate(zip(table.classes, table.background), spec.offset):
        if name in empty and not background:
            cure = f"no pixel has its label value {value}"
            if value in spec.ignore:
                cure = f"its label value {value} is also ignored"
            elif ignored and spec.ignore:
                cure += f", and pixels of {', '.join(map(str, spec.ignore))} are ignored (masks of 0 and 255 hold no 1)"
            problems.append(f"class {name!r} never occurs: {cure}; correct the labels or dataset.yaml")
    return problems


def _look(spec: DatasetSpec, record: dict, report: SplitReport, digest, seen: dict) -> None:
    key = record["file_name"] if "at" not in record else f"{record['file_name']}@{record['at'][0]}"
    if key not in seen:
        read = load_record_image(record)
        image, size = Image.fromarray(read.rgb), read.size
        seen[key] = size, read.record.orientation
        _note_reading(report, read)
        report.smallest = size if len(seen) == 1 else min(report.smallest, size, key=np.prod)
        report.largest = max(report.largest, size, key=np.prod)
        report.hashes[key] = image_hash(image)
        digest.update(Path(record["file_name"]).stem.encode())
        digest.update(read.rgb.tobytes() if read.record.container != "JPEG" else _bytes(record))
    if spec.task == "segmentation":
        _look_at_labels(spec, record, report, digest, *seen[key])
    elif spec.task == "classification":
        _add(report, load_classes(spec.class_table_name).classes[record["label"]], 1)
    elif spec.task in ("boxes", "points"):
        _look_at_objects(spec, record, report, digest, seen[key][0])
    elif spec.task == "shapes":
        _look_at_shapes(spec, record, report, digest, seen[key][0])
    elif spec.task == "vqa":
        digest.update(f"{record['question']}\0{record['answer']}".encode())
        _add(report, record.get("kind", "question"), 1)
        if not record["question"].strip() or not record["answer"].strip():
            raise BadData(f"{key}: a question or its answer is blank")
    else:
        digest.update("\0".join(record["captions"]).encode())
        _add(report, "captions", len(record["captions"]))
        if not any(caption.strip() for caption in record["captions"]):
            raise BadData(f"{key} has no caption")


def _note_reading(report: SplitReport, image: RGBImage) -> None:
    record = image.record
    if record.stretch:
        report.readings.setdefault(f"have values of {record.dtype}", []).append(record.stretch)
    if record.orientation != 1:
        report.readings.setdefault("are turned by their EXIF orientation", []).append(())
    if image.valid is not None:
        report.readings.setdefault("have pixels without data, which are ignored", []).append(())


def _reading_note(kind: str, stretches: list[tuple], images: int) -> str:
    note = f"{len(stretches)} of {images} images {kind}"
    if not stretches[0]:
        return note
    (low, low_end), (high, high_end) = ((min(ends), max(ends)) for ends in zip(*stretches))
    return (
        f"{note}: in training and prediction, each image is stretched so that its own 2nd percentile ({low:g} to"
        f" {low_end:g} in these images) becomes 0 and its 98th ({high:g} to {high_end:g}) becomes 255"
    )


def _look_at_labels(
    spec: DatasetSpec, record: dict, report: SplitReport, digest, size: tuple[int, int], orientation: int
) -> None:
    if "names" in record:
        names = [record["names"][i] if i != IGNORE else "" for i in record.get("ids", range(len(record["names"])))]
        table = id_table(len(names))
    else:
        names = list(load_classes(spec.class_table_name).classes)
        table = id_table(len(names), spec.ignore, spec.offset)
    path = record["sem_seg_file_name"]
    ids = to_ids(read_labels(path, size, orientation), table, len(names), path)
    digest.update(ids.tobytes())
    counts = np.bincount(ids.ravel(), minlength=256)
    report.ignored += int(counts[IGNORE]) if len(names) <= IGNORE else 0
    for name, count in zip(names, counts):
        if count and name:
            _add(report, name, int(count))
    if counts[: len(names)].sum() == 0:
        report.notes.append(f"{path}: every pixel is ignored")


def _look_at_objects(spec: DatasetSpec, record: dict, report: SplitReport, digest, size: tuple[int, int]) -> None:
    """Count boxes or points by class; report every wrong box or point, not only the first."""
    names, (height, width) = load_classes(spec.class_table_name).classes, size
    objects = record["boxes" if spec.task == "boxes" else "points"]
    digest.update(np.array(objects, np.float64).tobytes())
    per_class = Counter(names[int(one[-1])] for one in objects)
    for name, count in per_class.items():
        _add(report, name, count)
    for *place, label in objects:
        what = f"{record['file_name']}: the {'box' if spec.task == 'boxes' else 'point'} of {names[int(label)]} {place}"
        x0, y0, x1, y1 = place if spec.task == "boxes" else [*place, *place]
        if spec.task == "boxes" and (x1 <= x0 or y1 <= y0):
            report.problems.append(f"{what} has no area: remove it")
        if min(x0, y0) < 0 or x1 > width or y1 > height or (spec.task == "points" and (x1 >= width or y1 >= height)):
            report.problems.append(f"{what} is not inside the image of {width} x {height}: correct or remove it")


def _look_at_shapes(spec: DatasetSpec, record: dict, report: SplitReport, digest, size: tuple[int, int]) -> None:
    """Count polygons and circles by class. Polygons must lie inside the image; circles may lie partly outside."""
    names, (height, width) = load_classes(spec.class_table_name).classes, size
    digest.update(repr(record["shapes"]).encode())
    for shape in record["shapes"]:
        name = "unknown" if shape["class"] == UNKNOWN_SHAPE else names[shape["class"]]
        _add(report, name, len(shape["polygons"]) + len(shape["circles"]))
        outside = [
            ("polygon", polygon)
            for polygon in shape["polygons"]
            if np.min(polygon) < 0 or (np.max(polygon, 0) > (width, height)).any()
        ]
        outside += [
            ("circle", [x, y, r]) for x, y, r in shape["circles"] if not (-r < x < width + r and -r < y < height + r)
        ]
        for what, place in outside:
            report.problems.append(
                f"{record['file_name']}: the {what} of {name} {place} is not inside the image of {width} x {height}:"
                " correct or remove it"
            )


def _add(report: SplitReport, name: str, count: int) -> None:
    entry = report.counts.setdefault(name, [0, 0])
    entry[0] += count
    entry[1] += 1


def _bytes(record: dict) -> bytes:
    """The bytes of a JPEG file. The manifest uses these, because decoders differ in the last bit of the pixels."""
    with open(record["file_name"], "rb") as file:
        file.seek(record["at"][0] if "at" in record else 0)
        return file.read(record["at"][1] if "at" in record else -1)


def _compare(one: SplitReport, two: SplitReport) -> None:
    names, others = list(one.hashes), list(two.hashes)
    pairs = alike(one.hashes.values(), two.hashes.values())
    if pairs:
        some = "; ".join(f"{Path(names[i]).name} = {Path(others[j]).name}" for i, j in pairs[:10])
        two.problems.append(f"{len(pairs)} images look like images of {one.name}: {some}")


def histogram(reports: list[SplitReport]) -> list[tuple]:
    """Rows of a table of the 60 most frequent classes: the class; then, for each split, its share in % and the number
    of images that have it.
    """
    total = Counter()
    for report in reports:
        total.update({name: count for name, (count, _) in report.counts.items()})
    rows = []
    for name in list(total) if len(total) <= 60 else [n for n, _ in total.most_common(60)]:
        row = [name]
        for report in reports:
            count, images = report.counts.get(name, (0, 0))
            share = 100 * count / max(1, sum(c for c, _ in report.counts.values()))
            row += [round(share, 2), images]
        rows.append(tuple(row))
    return rows
