"""Tests that prepare, load, check and map every data set, from its publisher's files to training samples."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import published_trees as trees
import pytest
from conftest import ROOT, load_script
from PIL import Image

from skysense_o.data.catalog import SPECS, find, records_of, spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.encode import by_color, by_threshold, by_value
from skysense_o.data.labels import BadData
from skysense_o.data.mapper import TrainingMapper, read_image_and_labels
from skysense_o.data.prepare import Recipe, pairs_of, windows
from skysense_o.data.zip_source import Entry


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that prepares a data set: run("floodnet", "--source", ...) -> (exit code, stdout, stderr)."""

    def call(name: str, *words) -> tuple[int, str, str]:
        module = load_script(f"datasets/prepare_{name}.py")
        recipe = getattr(module, "RECIPES", None) or module.RECIPE
        option = {"samrs": "--set", "potsdam": "--bands"}.get(name, "")
        monkeypatch.setattr(sys, "argv", [f"prepare_{name}.py", *map(str, words)])
        capsys.readouterr()
        code = module.main(module.__doc__, recipe, option)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_each_spec_with_a_prepare_command_has_a_script_and_a_tree():
    needing = {spec.name for spec in SPECS if spec.prepare}
    assert needing == set(trees.PREPARED)
    for name in needing:
        script = spec_of(name).prepare.split()[1]
        assert (ROOT / script).is_file(), f"{name}: {script}"


@pytest.mark.parametrize("name", sorted(trees.PREPARED))
def test_published_files_become_the_named_classes(name, data, run, tmp_path, cfg):
    script, folder, options, generate = trees.PREPARED[name]
    truth = generate(tmp_path / "published")
    code, said, err = run(script, "--source", tmp_path / "published" / folder, *options)
    assert code == 0, err
    assert f"tools/check_dataset.py {name}" in said
    table, met = load_classes(name), set()
    for key, names in truth.items():
        split, stem = key.split("/", 1)
        (record,) = [r for r in records_of(f"{name}_{split}") if Path(r["file_name"]).stem == stem]
        with Image.open(record["sem_seg_file_name"]) as label:
            assert label.mode == "L"
        image, ids = read_image_and_labels(record)
        assert image.shape == (*names.shape, 3)
        shown = np.array([*table.classes, *[""] * 256], dtype=object)[ids]
        assert (shown == names).mean() == 1.0, f"{key}: {set(shown[shown != names])}"
        met.add(split)
        cfg.INPUT.CROP_SIZE = 16
        sample = TrainingMapper(cfg)(record)
        assert sample["sem_seg"].shape == (16, 16)
        assert sample["vocabulary"].classes[: len(table)] or table
    assert met == {s for spec, s in find(name) if s not in ("val_irrg",)}


@pytest.mark.parametrize("script", sorted({script for script, *_ in trees.PREPARED.values()}))
def test_help_shows_the_published_folder_tree(script, run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(script, "--help")
    assert stop.value.code == 0
    assert f"python datasets/prepare_{script}.py --source" in capsys.readouterr().out


def test_potsdam_infrared_is_a_split_of_its_own(data, run, tmp_path):
    truth = trees.potsdam(tmp_path, "IRRG", "val_irrg")
    code, said, _ = run("potsdam", "--source", tmp_path / "Potsdam", "--bands", "irrg")
    assert code == 0
    assert [Path(r["file_name"]).stem for r in records_of("isprs_potsdam_sem_seg_test_irrg")] == ["2_13_0_0_36_24"]
    assert "1 images (val_irrg 1)" in said
    assert len(truth) == 3


def test_near_infrared_is_dropped(data, run, tmp_path):
    trees.fbp(tmp_path)
    assert run("fbp", "--source", tmp_path / "Five-Billion-Pixels")[0] == 0
    image, _ = read_image_and_labels(records_of("fbp_train")[0])
    assert image.max() < 251


def test_zips_inside_zips_are_read_without_unpacking(data, run, tmp_path):
    trees.potsdam(tmp_path)
    source = tmp_path / "Potsdam"
    with zipfile.ZipFile(tmp_path / "2_Ortho_RGB.zip", "w") as inner:
        for path in source.glob("*_RGB.tif"):
            inner.write(path, f"2_Ortho_RGB/{path.name}")
    with zipfile.ZipFile(tmp_path / "Potsdam.zip", "w") as outer:
        outer.write(tmp_path / "2_Ortho_RGB.zip", "Potsdam/2_Ortho_RGB.zip")
        for path in source.glob("*_label_*"):
            outer.write(path, f"Potsdam/5_Labels_all_noBoundary/{path.name}")
    code, said, err = run("potsdam", "--source", tmp_path / "Potsdam.zip", "--bands", "rgb")
    assert code == 0, err
    assert "3 images (train 2, val 1)" in said


def test_an_interrupted_run_resumes(data, run, tmp_path):
    trees.loveda(tmp_path)
    assert run("loveda", "--source", tmp_path / "LoveDA")[0] == 0
    kept = data / "loveda/ann_dir/train/0.png"
    lost = data / "loveda/ann_dir/train/1366.png"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    code, said, _ = run("loveda", "--source", tmp_path / "LoveDA")
    assert code == 0
    assert "3 windows" in said
    assert kept.stat().st_mtime_ns == before
    assert lost.is_file()


def test_loveda_keeps_its_published_labels_and_splits(data, run, tmp_path):
    """LoveDA's labels are reduced by 1 exactly once; its "train" list is not used, because it names images of val."""
    trees.loveda(tmp_path)
    run("loveda", "--source", tmp_path / "LoveDA")
    stored = np.asarray(Image.open(data / "loveda/ann_dir/train/0.png"))
    assert set(np.unique(stored)) == set(range(8))
    _, ids = read_image_and_labels(records_of("loveda_train")[0])
    assert (ids[stored == 0] == 255).all()
    assert (ids[stored > 0] == stored[stored > 0] - 1).all()
    train, val = ({r["file_name"] for r in records_of(f"loveda_{split}")} for split in ("train", "val"))
    assert not train & val


def test_isaid_keeps_its_sixteen_ids(data, run, tmp_path):
    """Label images stay greyscale; a common converter writes palette images, which newer Pillow reads as 0 and 1."""
    trees.isaid(tmp_path)
    run("isaid", "--source", tmp_path / "iSAID")
    stored = Image.open(data / "isaid/ann_dir/train/P0000_0_0_36_24.png")
    assert stored.mode == "L"
    assert set(np.unique(stored)) == set(range(16))


def test_white_borders_in_massachusetts_roads_are_ignored():
    module = load_script("datasets/prepare_massachusetts_road.py")
    image = np.full((90, 90, 3), 100, np.uint8)
    image[:, :40] = 255
    image[80:84, 80:84] = 255  # a bright roof, too small to be ignored
    ids = module.ignore_white(image, np.ones((90, 90), np.uint8))
    assert (ids[:, :40] == 255).all()
    assert (ids[:, 40:] == 1).all()


def test_windows_cover_the_image_and_end_at_its_border():
    seen = np.zeros((1000, 1900), int)
    boxes = list(windows(1000, 1900, (896, 896, 384)))
    for x0, y0, x1, y1 in boxes:
        assert (y1 - y0, x1 - x0) == (896, 896)
        seen[y0:y1, x0:x1] += 1
    assert seen.min() > 0
    assert boxes[-1] == (1900 - 896, 1000 - 896, 1900, 1000)
    assert list(windows(5, 7, (0, 0, 0))) == [(0, 0, 7, 5)]
    assert len(list(windows(6000, 6000, (512, 512, 0)))) == 144, (
        "a tile has 144 windows, so Potsdam's 24 tiles have 3,456"
    )
    assert len(list(windows(2160, 3840, (1280, 1080, 0)))) == 6


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("floodnet", lambda p: Image.new("L", (36, 24), 10).save(p), r"has unknown values \[10\]"),
        ("floodnet", lambda p: Image.new("RGB", (36, 24)).save(p), "is a RGB image where one channel"),
        ("floodnet", lambda p: Image.new("L", (30, 24)).save(p), r"has the size \(24, 30\), but its image \(24, 36\)"),
        ("floodnet", lambda p: p.write_bytes(p.read_bytes()[:60]), "cut short or"),
        ("floodnet", lambda p: p.unlink(), "has no label file"),
    ],
)
def test_a_bad_label_is_named_and_the_other_files_are_prepared(data, run, tmp_path, name, spoil, says):
    _, folder, _, generate = trees.PREPARED[name]
    generate(tmp_path / "published")
    spoil(tmp_path / "published" / folder / "val/val-label-img/val_1_lab.png")
    code, said, err = run(name, "--source", tmp_path / "published" / folder)
    assert code == 1
    assert re.search(says, err)
    assert "val_1" in err
    assert "5 windows" in said


def test_unknown_label_colours_and_values_are_an_error(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    with pytest.raises(BadData, match=r"a.png has unknown colours .*\(\(1, 2, 3\), 16\)"):
        by_color({(0, 0, 0): 0})(data, "a.png", (4, 4))
    assert by_color({(0, 0, 0): 7}, tolerance=3)(data, "a.png", (4, 4)).max() == 7
    with pytest.raises(BadData, match="is a RGB image where one channel"):
        by_value({0: 0})(data, "a.png", (4, 4))
    assert by_threshold(2)(data, "a.png", (4, 4)).min() == 1
    with pytest.raises(BadData, match="cut short or"):
        by_threshold()(data[:40], "a.png", (4, 4))


def test_the_error_for_a_wrong_source_shows_the_expected_files(data, run, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/holiday.txt").write_text("")
    code, _, err = run("uavid", "--source", tmp_path / "other")
    assert code == 2
    assert "no image of uavid in --source" in err
    assert "other/holiday.txt" in err
    code, _, err = run("uavid", "--source", tmp_path / "nowhere")
    assert "is not there" in err
    (tmp_path / "cut.zip").write_bytes(b"PK")
    assert "is not a zip" in run("uavid", "--source", tmp_path / "cut.zip")[2]


def test_nothing_is_written_into_the_source(data, run, tmp_path):
    trees.loveda(tmp_path)
    code, _, err = run("loveda", "--source", tmp_path / "LoveDA", "--output", tmp_path / "LoveDA/out")
    assert code == 2
    assert "which is never changed" in err


def test_a_list_of_validation_images_can_be_given(data, run, tmp_path):
    _, folder, _, generate = trees.PREPARED["wbs_si"]
    generate(tmp_path)
    (tmp_path / "val.txt").write_text("water_body_2.jpg\n")
    assert run("wbs_si", "--source", tmp_path / folder, "--val-list", tmp_path / "val.txt")[0] == 0
    assert [Path(r["file_name"]).stem for r in records_of("wbs_si_val")] == ["water_body_2"]


def test_a_list_may_have_blanks_and_dots_in_its_names(tmp_path):
    """Regression: lines used to be split at blanks and stems cut at their last dot, which gave wrong splits."""
    recipe = Recipe("wbs_si", r"images/(?P<stem>[^/]+)\.(?:jpg|png)", r"masks/(?P<stem>[^/]+)\.png", by_threshold())
    stems = ["tile 1", "scene.v1.2", "scene.v1.3", "plain"]
    entries = [Entry(f"images/{stem}.jpg", tmp_path) for stem in stems]
    (tmp_path / "val.txt").write_bytes("\ufefftile 1\r\nscene.v1.2\r\n\r\nimages\\scene.v1.3.jpg\r\n".encode())
    pairs = pairs_of(recipe, entries, tmp_path / "val.txt")
    assert {pair.stem for pair in pairs if pair.split == "val"} == {"tile 1", "scene.v1.2", "scene.v1.3"}
    (tmp_path / "val.txt").write_text("plane\n")
    with pytest.raises(ValueError, match="val.txt has 'plane', which is not an image: write one stem per line"):
        pairs_of(recipe, entries, tmp_path / "val.txt")


def test_split_lists_shipped_by_the_publisher_are_required(data, run, tmp_path):
    trees.oem(tmp_path)
    (tmp_path / "OpenEarthMap_wo_xBD/val.txt").unlink()
    code, _, err = run("oem", "--source", tmp_path / "OpenEarthMap_wo_xBD")
    assert code == 2
    assert "no val.txt in --source" in err
