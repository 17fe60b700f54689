"""Tests that every output is complete or absent, and that the error for a full disk names file and size."""

from __future__ import annotations

import errno
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from skysense_o.checkpoint import save_weights
from skysense_o.inference.export import save
from skysense_o.scenes.geotiff import write_geotiff
from skysense_o.training.checkpointer import RunCheckpointer
from skysense_o.whole_files import whole, write_json, write_text

pytestmark = pytest.mark.faults


def fail_half_way(*args, **kwargs):
    """Replace a library's writer: write a few bytes, then fail as on a full disk."""
    target = next(a for a in (*args, *kwargs.values()) if hasattr(a, "write") or hasattr(a, "write_bytes"))
    if hasattr(target, "write_bytes"):
        target.write_bytes(b"half")
    else:
        target.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


FULL = r"could not be written: the disk is full. It needs more than .* MB and .* MB are free: make room"


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_earlier_file_outlives_a_writer_that_fails(tmp_path):
    write_text(tmp_path / "a.txt", "good")
    with suppress(RuntimeError), whole(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise RuntimeError("stop")
    assert (tmp_path / "a.txt").read_text() == "good"
    assert names_in(tmp_path) == {"a.txt"}


def test_what_a_killed_run_left_behind_is_replaced(tmp_path):
    (tmp_path / ".a.txt.part").write_text("of a killed run, and longer than what comes now")
    with whole(tmp_path / "a.txt") as part, open(part, "a") as file:
        file.write("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names_in(tmp_path) == {"a.txt"}


def test_a_full_disk_is_told_with_file_size_and_cure(tmp_path):
    with pytest.raises(OSError, match=rf"{tmp_path / 'a.bin'} {FULL}") as error, whole(tmp_path / "a.bin") as part:
        fail_half_way(part)
    assert error.value.errno == errno.ENOSPC
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("format", ["overlay", "labels", "probabilities", "json"])
def test_results_of_an_image_stay_whole(mini, tmp_path, monkeypatch, format):
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = mini(rgb, "road,tree", probabilities=True)
    (path,) = save(found, rgb, tmp_path, "a", [format], {})
    good = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", lambda self, target, **_: fail_half_way(target))
    monkeypatch.setattr(np, "savez_compressed", fail_half_way)
    monkeypatch.setattr("pathlib.Path.write_text", lambda self, text, **_: fail_half_way(self))
    with pytest.raises(OSError, match=FULL):
        save(found, rgb, tmp_path, "a", [format], {})
    assert path.read_bytes() == good
    assert names_in(tmp_path) == {path.name}


def test_json_of_every_kind_goes_through_one_writer(tmp_path):
    write_json(tmp_path / "new/a.json", {"é": [1, None]})
    assert (tmp_path / "new/a.json").read_text(encoding="utf-8") == '{\n "é": [\n  1,\n  null\n ]\n}\n'


def test_a_geotiff_stays_whole(tmp_path, monkeypatch):
    import rasterio
    import rasterio.shutil

    with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", width=16, height=16, count=1, dtype="uint8") as file:
        file.write(np.ones((1, 16, 16), np.uint8))
    (tmp_path / "a.tif").write_bytes(b"good")
    monkeypatch.setattr(rasterio.shutil, "copy", lambda _, part, **__: fail_half_way(part))
    zeros = np.zeros((16, 16), np.uint8)
    with rasterio.open(tmp_path / "s.tif") as source, pytest.raises(OSError, match=FULL):
        write_geotiff(tmp_path / "a.tif", source, zeros.dtype, 255, [range(16)], lambda rows: zeros, lambda file: None)
    assert (tmp_path / "a.tif").read_bytes() == b"good"
    assert names_in(tmp_path) == {"a.tif", "s.tif"}


def test_a_checkpoint_stays_whole(small_model, tmp_path, monkeypatch):
    checkpointer = RunCheckpointer(small_model, str(tmp_path), "", None)
    checkpointer.save("model_0000001", iteration=1)
    good = (tmp_path / "model_0000001.pth").read_bytes()
    monkeypatch.setattr(torch, "save", lambda data, part: fail_half_way(part))
    with pytest.raises(
        OSError, match="model_0000001.pth could not be written.*free space, then continue with --resume"
    ):
        checkpointer.save("model_0000001", iteration=1)
    assert (tmp_path / "model_0000001.pth").read_bytes() == good


def test_weights_stay_whole_and_equal_weights_give_equal_bytes(small_model, cfg, tmp_path, monkeypatch):
    """Regression: the order of the metadata used to vary, so files of equal weights had different SHA-256 sums."""
    import json
    import struct

    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_weights(small_model, path, cfg.dump())
    good = paths[0].read_bytes()
    assert good == paths[1].read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    metadata = json.loads(good[8 : 8 + length])["__metadata__"]
    assert list(metadata) == sorted(metadata)
    monkeypatch.setattr("skysense_o.checkpoint.sort_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_weights(small_model, paths[0], "other")
    assert paths[0].read_bytes() == good
    assert names_in(tmp_path) == {"a.safetensors", "b.safetensors"}


def test_of_several_errors_on_a_full_disk_the_first_is_told(tmp_path):
    """Regression: the error with file and size was replaced by a later error from closing a log file."""
    from skysense_o.errors import message

    def closed_later():
        try:
            with whole(tmp_path / "a.bin") as part:
                fail_half_way(part)
        finally:
            fail_half_way(tmp_path / "log.txt")

    with pytest.raises(OSError, match="No space") as error:
        closed_later()
    assert message(error.value).startswith(f"{tmp_path / 'a.bin'} could not be written: the disk is full")
    assert message(OSError(errno.ENOSPC, "No space left on device", "b.bin")).startswith("b.bin could not be written")
    assert message(OSError(errno.ENOENT, "No such file", "b.bin")) == "[Errno 2] No such file: 'b.bin'"
