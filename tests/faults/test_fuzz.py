"""Fuzz tests of every reader: mutated input gives a result or a one-line error, never a traceback.

A short run is part of the normal tests. The long run: SKYSENSE_O_FUZZ=1 pytest -m slow tests/faults. Runs with new
seeds for an hour: python tests/faults/fuzz_more.py. The environment variable SKYSENSE_O_SEED sets the seed.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from skysense_o.config import default_config, merge_file
from skysense_o.data.captions import read_captioned_images
from skysense_o.data.labels import read_labels
from skysense_o.data.own import own_spec
from skysense_o.data.relation_graph import load_graph_with_report
from skysense_o.data.skysa import read_index
from skysense_o.data_engine.review.coco import from_coco, to_coco
from skysense_o.data_engine.review.label_studio import from_label_studio, to_label_studio
from skysense_o.data_engine.review.log import Decision, DecisionLog
from skysense_o.errors import is_expected, message
from skysense_o.image_io import read_image
from skysense_o.scenes.raster import Raster
from skysense_o.text_files import parse_json
from skysense_o.vocabulary import Vocabulary, read_class_file
from skysense_o.weight_files import read_config, read_weights

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("SKYSENSE_O_SEED", 20261129))
SHORT, LONG = 100, 3000
MOST_SECONDS, MOST_KIB = 20.0, 2 * 2**20
NASTY = (
    b"\x00", b"\xff" * 4, b"NaN", b"Infinity", b"-1", b"1e999", b"null", b"[]", b"{}", b"[" * 3000, b'"\\ud800"',
    b"\xef\xbb\xbf", b"\r", b"\xe2\x80\xa8", b"99999999999999999999", b"true", b": ", b"- ", b"&a [*a]",
    b"!!python/name:os.system ",
)  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` with some random bytes cut, overwritten or repeated; half of the changes are near the start."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        end = max(1, len(data) if rng.random() < 0.5 else min(len(data), 300))
        at, kind = int(rng.integers(0, end)), rng.integers(0, 6)
        if kind == 0 and data:
            data[at % len(data)] = rng.integers(0, 256)
        elif kind == 1:
            data[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
        elif kind == 2 and rng.random() < 0.4:
            del data[at:]
        elif kind == 3:
            data[at : at + int(rng.integers(0, 9))] = NASTY[rng.integers(len(NASTY))]
        elif kind == 4:
            data[at:at] = data[at : at + int(rng.integers(1, 60))]
        else:
            del data[at : at + int(rng.integers(1, 20))]
    return bytes(data)


def values_replaced(value, rng: np.random.Generator, chance: float = 0.002):
    """Return a JSON document in which a few random values are replaced by values of other types."""
    if rng.random() < chance:
        odd = [
            None,
            True,
            -1,
            0,
            2**70,
            1e300,
            float("nan"),
            float("inf"),
            "",
            "none",
            "\ud800",
            [],
            {},
            [[]],
            [None],
            {"id": []},
        ]
        return odd[rng.integers(len(odd))]
    if isinstance(value, dict):
        return {key: values_replaced(v, rng, chance) for key, v in value.items() if rng.random() > chance / 4}
    if isinstance(value, list):
        return [values_replaced(v, rng, chance) for v in value]
    return value


def error_of(read, *args) -> Exception | None:
    try:
        read(*args)
    except (ValueError, OSError, KeyError) as error:
        return error
    return None


def outcome(read, *args) -> str:
    """Return "read" or "error"; fail unless the reader gives a result or a one-line error in time."""
    begun = time.process_time()  # measure CPU time, so that other processes have no influence
    error = error_of(read, *args)
    assert time.process_time() - begun < MOST_SECONDS
    if error is None:
        return "read"
    text = message(error).strip()
    assert is_expected(error), f"{type(error).__name__}: {text}"
    assert text, f"{type(error).__name__} without a message"
    assert "\n" not in text, text
    return "error"


def fuzz_bytes(tmp_path: Path, seeds: dict[str, bytes], read, count: int) -> Counter:
    rng, said = np.random.default_rng(SEED), Counter()
    for k in range(count):
        name = list(seeds)[k % len(seeds)]
        path = tmp_path / f"{k % 2}_{name}"
        path.write_bytes(mutated(seeds[name], rng))
        said[outcome(read, path)] += 1
    return said


def image_seeds() -> dict[str, bytes]:
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    seeds = {}
    kinds = ("png", "jpg", "tif", "bmp", "gif", "webp", "ppm", "jp2")
    for suffix in kinds:
        stream = io.BytesIO()
        name = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
        Image.fromarray(rgb).save(stream, "PPM" if suffix == "ppm" else name)
        seeds[f"a.{suffix}"] = stream.getvalue()
    for suffix, mode in (("png", "I;16"), ("png", "P"), ("png", "LA"), ("tif", "F"), ("png", "1")):
        stream = io.BytesIO()
        image = (
            Image.fromarray(rgb[..., 0].astype(np.uint16) * 200)
            if mode == "I;16"
            else Image.fromarray(rgb).convert(mode)
        )
        image.save(stream, {"png": "PNG", "tif": "TIFF"}[suffix])
        seeds[f"{mode.strip(';')}.{suffix}".replace(";", "")] = stream.getvalue()
    return seeds


def raster_seeds(tmp_path: Path) -> dict[str, bytes]:
    from made_scenes import fields, write_scene

    path, seeds = tmp_path / "s.tif", {}
    for name, options in (
        ("plain", {}),
        ("tiled", {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}),
        ("nodata", {"nodata": 0}),
    ):
        write_scene(path, fields(48, 64), **options)
        seeds[f"{name}.tif"] = path.read_bytes()
    write_scene(path, fields(48, 64).astype(np.uint16) * 100)
    seeds["deep.tif"] = path.read_bytes()
    path.unlink()
    return seeds


def read_raster(path: Path) -> None:
    from skysense_o.image_io import gdal_settings

    with gdal_settings(), Raster(path) as raster:
        height, width = (min(side, 256) for side in raster.size)
        raster.pixels(range(height), range(width), (0, 0, 0))
        raster.valid(range(height), range(width))


def read_own_folder(path: Path) -> None:
    folder = path.parent / "own"
    (folder / "img_dir").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_bytes(path.read_bytes())
    own_spec.cache_clear()
    own_spec(str(folder))


@pytest.fixture(autouse=True)
def memory():
    """Each reader's memory grows by at most 2 GiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # reset the recorded peak memory
    except OSError:
        yield
        return
    before = status("VmRSS")
    yield
    assert status("VmHWM") - before < MOST_KIB


def status(name: str) -> int:
    """Return a value in KiB from /proc/self/status."""
    return int(re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


long_run = pytest.mark.skipif(
    not os.environ.get("SKYSENSE_O_FUZZ"),
    reason="set SKYSENSE_O_FUZZ=1 to test 3,000 inputs per reader, which takes many minutes",
)
COUNTS = [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=[pytest.mark.slow, long_run])]


@pytest.mark.parametrize("count", COUNTS)
def test_images(tmp_path, count):
    assert fuzz_bytes(tmp_path, image_seeds(), lambda path: read_image(path, max_pixels=10**7), count)["error"] > 0, (
        "no input was damaged enough"
    )


@pytest.mark.parametrize("count", COUNTS)
def test_rasters(tmp_path, count):
    assert fuzz_bytes(tmp_path, raster_seeds(tmp_path), read_raster, count)["error"] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_label_images(tmp_path, count):
    seeds = {name: data for name, data in image_seeds().items() if name.endswith((".png", ".tif"))}
    assert fuzz_bytes(tmp_path, seeds, read_labels, count)["error"] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_weights(tmp_path, count):
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.zeros(2, dtype=torch.float16)}
    save_file(state, tmp_path / "w.safetensors", metadata={"config": "MODEL: {}"})
    torch.save({"model": state, "iteration": 3}, tmp_path / "w.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    seeds = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}

    def read(path):
        read_weights(path)
        read_config(path)

    assert fuzz_bytes(tmp_path, seeds, read, count)["error"] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_configs(tmp_path, root, count):
    seeds = {"a.yaml": b"MODEL:\n  TOWER:\n    WIDTH: 16\nSOLVER: {BASE_LR: 0.1, STEPS: [1, 2]}\nSEED: 3\n"}
    assert fuzz_bytes(tmp_path, seeds, lambda path: merge_file(default_config(), path), count)["error"] > 0, (
        "no input was damaged enough"
    )


@pytest.mark.parametrize("count", COUNTS)
def test_dataset_yaml(tmp_path, count):
    text = "name: town\nclasses: [water, land, {name: road, synonyms: [street]}]\nignore: [255]\noffset: 1\n"
    seeds = {"dataset.yaml": text.encode()}
    assert fuzz_bytes(tmp_path, seeds, read_own_folder, count)["error"] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_json_lines_of_skysa(tmp_path, count):
    line = {"flickr_url": "a.png", "segmentation": "a.png", "split": "train", "ann_list": [{"category_name": "road"}]}
    seeds = {"skysa_dataset.jsonl": (json.dumps(line) + "\n").encode() * 3}
    said = Counter()

    def read(path):
        rows = list(read_index(path, Counter()))
        said.update("bad" in row for row in rows)
        if len(rows) == sum("bad" in row for row in rows):
            raise ValueError("; ".join(row["bad"] for row in rows) or "no line")

    assert fuzz_bytes(tmp_path, seeds, read, count)["error"] > 0
    assert said[True] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_texts_that_people_write(tmp_path, count):
    d = "{tuple_delimiter}"
    seeds = {
        "a.csv": b'image,caption\na.png,a road\nb.png,"a road, wide"\n' * 3,
        "a.jsonl": b'{"image": "a.png", "captions": ["a road", "roads"], "split": "train"}\n' * 3,
        "words.txt": b"# ours\nbuilding|house\nroad\ntree\n",
        "g.json": b'{"names": ["a", "b"], "sources": ["x"], "edges": [[0, 1, 5, 0], [1, 0, 3, 0]]}',
        "g.txt": f'("relationship"{d}"lake"{d}"pond"{d}9{d}"both")\n'.encode() * 3,
    }

    def read(path):
        load_graph_with_report.cache_clear()
        if path.suffix in (".csv", ".jsonl"):
            read_captioned_images(path.name, path.parent)
        elif "words" in path.name:
            Vocabulary.of(read_class_file(path))
        else:
            load_graph_with_report(str(path))

    assert fuzz_bytes(tmp_path, seeds, read, count)["error"] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_decisions(work, tile, count):
    good = [
        Decision(tile, 1, "ann", "accept", "road"),
        Decision(tile, 2, "ann", "split", None, 9, (1, 2, 9, 9), mask="PPf0"),
    ]
    lines = b"".join(json.dumps(vars(decision)).encode() + b"\n" for decision in good * 2)
    rng, path, bad = np.random.default_rng(SEED), work / "review/decisions.jsonl", 0
    path.parent.mkdir(exist_ok=True)
    for _ in range(count):
        path.write_bytes(mutated(lines, rng))
        log = DecisionLog(work)
        assert all("\n" not in text for text in log.bad)
        bad += len(log.bad)
    assert bad > 0


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("program", ["coco", "label studio"])
def test_annotation_files(review, program, count):
    good = to_coco(review) if program == "coco" else as_exported(to_label_studio(review))
    text = json.dumps(good).encode()
    rng, said = np.random.default_rng(SEED), Counter()

    def read(data):
        if program == "coco":
            from_coco(review, parse_json(data, "a.json"))
        else:
            from_label_studio(review, parse_json(data, "a.json"), "ann")

    for k in range(count):
        data = mutated(text, rng) if k % 3 == 0 else json.dumps(values_replaced(good, rng)).encode()
        said[outcome(read, data)] += 1
    assert min(said["read"], said["error"]) > 0


def as_exported(tasks: list[dict]) -> list[dict]:
    """Return tasks with annotations instead of predictions, and with shapes of every kind."""
    size = {"original_width": 120, "original_height": 80, "image_rotation": 0}
    values = {
        "rectanglelabels": {"x": 1, "y": 2, "width": 30, "height": 20, "rotation": 10},
        "ellipselabels": {"x": 50, "y": 50, "radiusX": 10, "radiusY": 8, "rotation": 3},
        "polygonlabels": {"points": [[1, 1], [40, 1], [40, 30.5]]},
        "labels": {},
    }
    shapes = [{"id": kind, "type": kind, **size, "value": {**value, kind: ["car"]}} for kind, value in values.items()]
    return [
        {
            "data": task["data"],
            "annotations": [{"completed_by": 1, "result": task["predictions"][0]["result"] + shapes}],
        }
        for task in tasks
    ]


def test_the_mutations_are_the_same_each_time():
    first, second = (mutated(b"abc" * 99, np.random.default_rng(SEED)) for _ in range(2))
    assert first == second
    assert not re.fullmatch(b"(abc){99}", first)
