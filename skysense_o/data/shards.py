"""Webdataset shards: tar files in which the files of a sample share a stem. They are read without unpacking."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.text_files import checked, parse_json, take

IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "img_content")  # img_content: in RS5M
TEXTS = ("txt", "caption")


def read_shards(spec: DatasetSpec, split: str) -> Iterator[dict]:
    """Read the records of all shards that match the pattern of the split."""
    for shard in sorted(spec.root.glob(spec.splits[split])):
        for record in read_shard(shard):
            yield record if "bad" in record else {**record, "dataset": spec.key}


def read_shard(shard: Path) -> Iterator[dict]:
    """Read the records of a shard; its images are only read by `member_bytes`.

    Yields:
        {"file_name": path of the shard, "at": (first byte, number of bytes) of the image, "captions"}, or
        {"bad": message}.
    """
    sample: dict = {}
    stem = None
    with _opened(shard) as tar:
        for member in tar:
            if not member.isfile():
                continue
            suffix = member.name.rpartition("/")[2].partition(".")[2]  # a stem ends at the first dot
            key = member.name[: -len(suffix) - 1]
            if key != stem and sample:
                yield _record(shard, stem, sample)
                sample = {}
            stem = key
            _add_member(sample, tar, member, suffix.rpartition(".")[2].lower(), f"{shard}: {member.name}")
    if sample:
        yield _record(shard, stem, sample)


@contextmanager
def _opened(shard: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file; errors of the module tarfile become a ValueError."""
    try:
        with tarfile.open(shard, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a tar file, is compressed or is truncated ({error}): replace it") from error


def _add_member(sample: dict, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, where: str) -> None:
    if suffix in IMAGES:
        sample["at"] = (member.offset_data, member.size)
    elif suffix in TEXTS:
        sample.setdefault("captions", []).append(tar.extractfile(member).read().decode("utf-8", "replace").strip())
    elif suffix == "json" and "captions" not in sample:
        body = parse_json(tar.extractfile(member).read(), where)
        found = [take(body, key, (str, list, type(None)), where, None) for key in ("captions", "caption", "text")]
        texts = next(filter(None, found), [])
        texts = [texts] if isinstance(texts, str) else texts
        sample["captions"] = [checked(text, str, f"{where}: a caption") for text in texts]


def _record(shard: Path, stem: str, sample: dict) -> dict:
    if "at" not in sample or not any(sample.get("captions", ())):
        return {"bad": f"{shard}: sample {stem!r} has no {'caption' if 'at' in sample else 'image'}"}
    return {"file_name": str(shard), **sample}


def member_bytes(record: dict) -> bytes:
    """Read the image of a record of `read_shard` -> bytes of its file."""
    first, count = record["at"]
    with open(record["file_name"], "rb") as file:
        file.seek(first)
        return file.read(count)
