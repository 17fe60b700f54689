"""Tests that one bad file never stops a batch of files: in the data engine, in prepare, on Ray workers, in the demo."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skysense_o.data.captions import read_captioned_images
from skysense_o.data.prepare import Pair, Recipe, prepare_all
from skysense_o.data.zip_source import Entry, entries_of
from skysense_o.data_engine import collect as collect_module
from skysense_o.data_engine.collect import collect
from skysense_o.data_engine.work_folder import WorkFolder
from skysense_o.image_io import find_images, stems_of

UNEXPECTED = {"b.png": ZeroDivisionError("of a library\nsecond line"), "c.png": KeyError("tag")}


def write_images(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return [folder / name for name in names]


def failing(read):
    """Wrap a reader so that it raises an error for the files in UNEXPECTED."""

    def reader(path, *args, **options):
        if Path(path).name in UNEXPECTED:
            raise UNEXPECTED[Path(path).name]
        return read(path, *args, **options)

    return reader


def test_collect_lists_bad_files_and_takes_the_others(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "in/e.png").write_bytes(b"no image")
    paths += [tmp_path / "in/e.png", tmp_path / "in/lost.png"]
    work = WorkFolder(tmp_path / "work")
    monkeypatch.setattr(collect_module, "read_image", failing(collect_module.read_image))
    with pytest.raises(ZeroDivisionError):  # in tests, an unexpected error shows its traceback
        collect(work, paths, side=64)
    monkeypatch.delenv("SKYSENSE_O_TRACEBACK")
    result = collect(work, paths, side=64)
    assert [error["source"] for error in result.errors] == ["b.png", "c.png", "e.png", "lost.png"]
    said = [error["error"] for error in result.errors]
    assert said[0].startswith("b.png: unexpected ZeroDivisionError: of a library second line (SKYSENSE_O_TRACEBACK=1")
    assert said[1].startswith("c.png: unexpected KeyError: tag")
    assert said[2].startswith("e.png is not an image that can be read")
    assert "no image at 'lost.png'" in said[3]
    assert not any(str(tmp_path) in text for text in said), (
        "the written messages must not contain paths of this machine"
    )
    assert {row["source"] for row in work.catalog()} == {"a.png", "d.png"}
    monkeypatch.undo()
    assert {row["source"] for row in work.catalog()} == {"a.png", "d.png"}
    assert len(collect(work, paths, side=64).errors) == 2, "files that failed must be tried again in the next run"
    assert {row["source"] for row in work.catalog()} == {"a.png", "b.png", "c.png", "d.png"}


def test_the_command_collect_ends_with_1_and_keeps_the_good_ones(tmp_path, call):
    write_images(tmp_path / "in", "a.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    words = ("collect", "--input", tmp_path / "in", "--work", tmp_path / "work")
    code, _, err = call("tools/data_engine.py", *words)
    assert code == 1
    assert "b.png is empty (0 bytes)" in err
    assert len(WorkFolder(tmp_path / "work").catalog()) == 1


def test_loops_of_links_end_and_are_told(tmp_path):
    (path,) = write_images(tmp_path / "in", "a.png")
    for link, target in (("loop.png", "loop.png"), ("one.png", "two.png"), ("two.png", "one.png"), ("up", "..")):
        (tmp_path / "in" / link).symlink_to(target)
    (tmp_path / "in/again.png").symlink_to("a.png")
    found = find_images([str(tmp_path / "in")])
    assert [p.name for p in found] == ["a.png", "again.png", "loop.png", "one.png", "two.png"]
    result = collect(WorkFolder(tmp_path / "work"), found, side=64)
    assert [error["source"] for error in result.errors] == ["loop.png", "one.png", "two.png"]
    assert (result.sources, result.tiles) == (1, 1), "a link to an image and the image itself must count as one source"
    assert find_images([str(tmp_path / "**/a.png")]) == [path]


def test_hidden_files_and_folders_are_no_images(tmp_path, call):
    write_images(tmp_path / "in", "a.png")
    (tmp_path / "in/._a.png").write_bytes(b"\0\5\x16\7 of macOS")
    (tmp_path / "in/folder.tif").mkdir()
    assert [p.name for p in find_images([str(tmp_path / "in")])] == ["a.png"]
    assert len(read_captioned_images("./", tmp_path)) == 1
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("images/a.png", b"1")
        archive.writestr("__MACOSX/images/._a.png", b"2")
    assert [entry.name for entry in entries_of([tmp_path / "a.zip"])] == ["a.zip/images/a.png"]
    assert [entry.name for entry in entries_of([tmp_path / "in"])] == ["in/a.png"]


def test_a_damaged_member_of_a_zip_is_told_and_the_others_are_prepared(tmp_path, monkeypatch):
    monkeypatch.delenv("SKYSENSE_O_TRACEBACK")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"1" * 1000)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[60] ^= 255
    (tmp_path / "a.zip").write_bytes(data)
    (bad,) = entries_of([tmp_path / "a.zip"])
    image, label = write_images(tmp_path / "in", "i.png", "l.png")
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(label)

    def decode(data, name, size):
        if name == "odd":
            raise ZeroDivisionError
        return np.zeros(size, np.uint8)

    recipe = Recipe("dubai", "", "", decode)
    good, odd = Entry("label", label), Entry("odd", label)
    pairs = [
        Pair("train", "a", bad, good),
        Pair("train", "b", Entry("image", image), odd),
        Pair("train", "c", Entry("image", image), good),
    ]
    count, errors = prepare_all(recipe, pairs, tmp_path / "out")
    assert count == 1
    assert len(errors) == 2
    assert errors[0].startswith("a.zip/a.png cannot be unpacked (Bad CRC-32")
    assert errors[1].startswith("image: unexpected ZeroDivisionError: no message")


def test_a_ray_worker_gives_each_scene_its_own_error(tmp_path, monkeypatch):
    pytest.importorskip("rasterio", reason='pip install -e ".[geo]"')
    from skysense_o.scenes import ray_archive
    from skysense_o.scenes.options import SceneOptions, SceneOutputs

    errors = {
        "b.tif": ZeroDivisionError("of a library"),
        "c.tif": ValueError(f"{tmp_path}/c.tif is not a raster"),
        "d.tif": OSError("disk full"),
    }

    def run_scene(predictor, path, vocabulary, outputs, options, progress):
        if path.name in errors:
            raise errors[path.name]
        return [outputs.folder / f"{outputs.stem}_labels.tif"], []

    monkeypatch.setattr(ray_archive, "run_scene", run_scene)
    outputs = SceneOutputs(tmp_path, ("geotiff",))
    one = partial(ray_archive.segment_one, None, outputs, SceneOptions(), None)  # this test does not need the model
    rows = [{"path": str(tmp_path / f"{name}.tif"), "stem": name} for name in "abcd"]
    with pytest.raises(ZeroDivisionError):
        one(rows[1])
    monkeypatch.delenv("SKYSENSE_O_TRACEBACK")
    done = [one(row) for row in rows]
    assert done[0] == {**rows[0], "written": [str(tmp_path / "a_labels.tif")], "error": "", "warnings": []}
    assert [row["written"] for row in done[1:]] == [[], [], []]
    assert done[1]["error"].startswith("b.tif: unexpected ZeroDivisionError: of a library")
    assert done[2]["error"] == f"{tmp_path}/c.tif is not a raster"
    assert done[3]["error"] == "d.tif: disk full"


def test_mistakes_of_an_archive_are_answered_before_ray_starts(tmp_path, call):
    write_images(tmp_path / "in", "a.png")
    words = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--classes")
    code, _, err = call("tools/segment_archive.py", *words, "road", "--save", "geotif")
    assert code == 2
    assert "--save 'geotif': unknown formats ['geotif']: choose among geotiff" in err
    code, _, err = call("tools/segment_archive.py", *words, "none", "--background", "road")
    assert (code, "a class is called 'none'" in err) == (2, True), err


def test_no_two_images_of_a_batch_share_their_result_files():
    paths = [Path(p) for p in ("a/x.tif", "a/x.png", "b/x.tif", "b/X.png", "c/b/x.tif", "x_2.tif", "x.tif")]
    stems = stems_of(paths)
    assert Counter(map(str.lower, stems)).most_common(1)[0][1] == 1


def test_names_that_are_not_utf8_are_collected(tmp_path):
    (path,) = write_images(tmp_path / "in", "a.png")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/in/\xe9t\xe9.png")
    os.rename(path, odd)
    result = collect(WorkFolder(tmp_path / "work"), find_images([str(tmp_path / "in")]), side=64)
    assert (result.errors, result.tiles) == ([], 1)
