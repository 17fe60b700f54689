"""Tests of a user's own data sets: dataset.yaml, captions, hand-made labels, and the reports of check_dataset.py."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import published_trees as trees
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from skysense_o.data.captions import read_captioned_images
from skysense_o.data.catalog import find, records_of, register_folders
from skysense_o.data.classes import load_classes
from skysense_o.data.mapper import TrainingMapper, read_image_and_labels
from skysense_o.data.own import own_spec

CHECK = "tools/check_dataset.py"


@pytest.fixture
def mine(tmp_path) -> Path:
    folder, rng = tmp_path / "mine", np.random.default_rng(0)
    for split in ("train", "val"):
        trees.write(folder / f"img_dir/{split}/{split}_a.jpg", trees.random_image(rng, (40, 50)))
        labels = rng.integers(1, 4, (40, 50), dtype=np.uint8)
        labels[0], labels[1] = 0, 255
        trees.write(folder / f"ann_dir/{split}/{split}_a.png", labels)
    (folder / "dataset.yaml").write_text(
        "name: my_town\nignore: [0, 255]\noffset: 1\nclasses:\n  - water\n"
        "  - {name: road, synonyms: [street], color: [1, 2, 3]}\n  - {name: other, background: true}\n"
    )
    return folder


def test_a_folder_of_ones_own_is_found_by_path_and_by_name(mine, cfg, call):
    assert [r["dataset"] for r in records_of(f"{mine}:val")] == [str(mine)]
    assert len(records_of(str(mine))) == 2
    table = load_classes(MetadataCatalog.get(f"{mine}:val").class_table)
    assert table.classes == ("water", "road", "other")
    assert (table.colors[1], table.background, table.synonyms[1]) == ((1, 2, 3), (False, False, True), ("street",))
    register_folders([str(mine)])
    (record,) = records_of("my_town_train")
    stored = np.asarray(Image.open(record["sem_seg_file_name"]))
    _, ids = read_image_and_labels(record)
    assert (ids[2:] == stored[2:] - 1).all()
    assert (ids[:2] == 255).all()
    cfg.INPUT.CROP_SIZE = 32
    assert set(TrainingMapper(cfg)(record)["sem_seg"].unique().tolist()) <= {0, 1, 2, 255}
    assert call(CHECK, mine)[0] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("classes: [water]\nsuffix: .png", r"holds the unknown keys \['suffix'\]: use classes"),
        ("classes: []", r"'classes' is \[\]: it must list the classes"),
        ("classes: [{id: 4, name: a}]", r"ids must run 0, 1, 2, ... in order, found \[4\]"),
        ("classes: [a, a]", r"'classes' has \['a'\] for two classes"),
        ("classes: [Water, water]", r"'classes' has \['Water', 'water'\] for two classes"),
        ("classes: {roof: 1, water: 0}", r"'classes' is {'roof': 1, 'water': 0}: it must list the classes in"),
        ("classes: water", "'classes' is 'water': it must list the classes"),
        ("name: a", "has no 'classes'"),
        ("classes: [1, 2]", "'classes', entry 0 is 1: .* names"),
        ("classes: [{name: a, colour: [1, 2, 3]}]", r"entry 0 \('a'\) has \['colour'\]: keys must be among id, name"),
        ("classes: [{name: a, synonyms: lake}]", "has synonyms 'lake': it must be a list of words"),
        ("classes: [{name: a, synonyms: [1]}]", r"has synonyms \[1\]: it must be a list of words"),
        ("classes: [{name: a, color: blue}]", "has color 'blue': it must be three numbers from 0 to 255"),
        ("classes: [{name: a, color: [300, -5]}]", r"has color \[300, -5\]: it must be three numbers from 0 to 255"),
        ("classes: [{name: a, color: [0, 0, 256]}]", r"has color \[0, 0, 256\]: it must be three numbers"),
        ("classes: [{name: a, background: 1}]", "has background 1: it must be true or false"),
        ("classes: [a]\nignore:", "'ignore' is None: it must be a whole number from 0 to 65534, or a list"),
        ("classes: [a]\nignore: ['255']", r"'ignore' is \['255'\]: it must be a whole number"),
        ("classes: [a]\nignore: 70000", "'ignore' is 70000: it must be"),
        ("classes: [a]\nignore: -1", "'ignore' is -1: it must be"),
        ("classes: [a]\nignore: none", "'ignore' is 'none': it must be"),
        ("classes: [a]\nignore: true", "'ignore' is True: it must be"),
        ("classes: [a]\noffset:", "'offset' is None: it must be a whole number from 0 to 65534"),
        ("classes: [a]\noffset: -1", "'offset' is -1: it must be"),
        ("classes: [a]\noffset: 1.5", "'offset' is 1.5: it must be"),
        ("classes: [a]\nname: 7", "'name' is 7: it must be text"),
        (f"classes: {[f'c{i}' for i in range(256)]}", "'classes' has 256 classes: at most 255"),
        ("classes: ['a|b']", r"'classes' has 'a.b': write further words as synonyms"),
        ("classes: [{name: a, synonyms: [B]}, b]", "'classes' has the word 'b' for 'a' and for 'b': give each"),
        (
            "classes: [a]\nname: ../b",
            "'name' is '../b': files are named after it, so write at most 100 characters, without",
        ),
        ("classes: [a]\nname: " + "x" * 101, "'name' is 'x.*: files are named after it"),
        ("classes: [", "is not YAML"),
        ("classes: " + "[" * 5000, "is nested too deeply"),
        ("classes: [a]\nclasses: [b]", "is not YAML: 'classes' comes twice on line 1 or below: keep one"),
        ("classes: [{name: a, color: [1, 2, 3], color: [3, 2, 1]}]", "is not YAML: 'color' comes twice"),
        ("classes: [2020-99-99]", "is not YAML: month must be in 1..12"),
        ("classes: [2020-01-01]", r"'classes', entry 0 is datetime.date\(2020, 1, 1\)"),
        ("classes: [a, null]", "'classes', entry 1 is None"),
        ("classes: [yes, no]", "'classes', entry 0 is True: .* names"),
        ("classes: [{name: [a]}]", r"entry 0 is {'name': \['a'\]}"),
        ("- water\n- road", r"holds the unknown keys \['water', 'road'\]: use classes"),
        ("classes: [a]\nignore: [[255]]", r"'ignore' is \[\[255\]\]: it must be"),
        ("classes: [a]\nignore: .nan", "'ignore' is nan: it must be"),
        ("classes: [{name: a, background: 'yes'}]", "has background 'yes': it must be true or false"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{y}: &{y} [*{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}]\n"
                for x, y in zip("abcdefghijk", "bcdefghijkl")
            )
            + "classes: [a]\nname: *l",
            r"holds the unknown keys \['a', 'b', .*use classes",
        ),
        ("classes: [&a [x, x], [*a, *a]]", r"'classes', entry 0 is \['x', 'x'\]"),
    ],
)
def test_a_wrong_dataset_yaml_names_the_key(mine, tmp_path, text, says):
    (mine / "dataset.yaml").write_text(text)
    load_classes.cache_clear()
    with pytest.raises(ValueError, match=says) as error:
        own_spec.__wrapped__(str(mine))
    assert str(mine / "dataset.yaml") in str(error.value)


def test_a_dataset_yaml_may_begin_with_a_byte_order_mark(mine):
    text = (mine / "dataset.yaml").read_text()
    (mine / "dataset.yaml").write_text(text, encoding="utf-8-sig")
    assert own_spec.__wrapped__(str(mine)).name == "my_town"
    (mine / "dataset.yaml").write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match="dataset.yaml is not UTF-8 text .*: save it with the encoding UTF-8"):
        own_spec.__wrapped__(str(mine))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_captions_are_read_with_and_without_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.csv").write_text('image,caption\r\na.png,"a road, wide"\r\n', encoding=encoding)
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "a\u2028road"}\n\n', encoding=encoding)
    assert read_captioned_images("a.csv", tmp_path)[0]["captions"] == ["a road, wide"]
    assert read_captioned_images("a.jsonl", tmp_path)[0]["captions"] == ["a\u2028road"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "image,caption\na.png,a road, wide\n", "line 2: more fields than the 2 columns image, caption: put"),
        ("a.csv", "picture,caption\na.png,a road\n", "line 2: image and caption or captions are needed, found picture"),
        ("a.csv", "image,caption\na.png\n", "line 2: image and caption or captions are needed, found image"),
        ("a.csv", "image;caption\na.png;a road\n", "has columns separated by ';': .* separate them with commas"),
        ("a.csv", "image,caption,image\n", "has the column 'image' twice: give each column its own name"),
        ("a.csv", 'image,caption\na.png,"' + "x" * 140_000, "is not CSV: field larger than field limit"),
        ("a.csv", 'image,caption\na.png,"a road\nb.png,sea\n', "is not CSV: unexpected end of data"),
        ("a.jsonl", '{"image": 5, "caption": "a road"}\n', "line 1: 'image' is 5: it must be text or null"),
        (
            "a.jsonl",
            '{"image": "a.png", "captions": ["a", {}]}\n',
            "line 1: a caption is an object of 0: it must be text",
        ),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: .* is nested too deeply"),
        ("a.jsonl", '{"image": "a.png", "caption": "a road"}\n["b"]\n', "line 2: .* is not a JSON object"),
        (
            "a.jsonl",
            '{"image": "a.png", "caption": 7}\n',
            "line 1: 'caption' is 7: it must be a list or text or null",
        ),
        ("a.jsonl", "image\n", "line 1: 'image' is not JSON"),
    ],
)
def test_a_wrong_line_of_captions_is_named(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name},? {says}"):
        read_captioned_images(name, tmp_path)


def test_a_folder_that_is_not_a_data_set_is_an_error(mine, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no dataset.yaml, which lists the classes"):
        find(str(tmp_path))
    with pytest.raises(KeyError, match="has no split 'test'; its splits are train, val"):
        find(f"{mine}:test")
    (mine / "dataset.yaml").write_text("name: dubai\nclasses: [a]")
    own_spec.cache_clear()
    with pytest.raises(ValueError, match="the name 'dubai' belongs to another data set"):
        register_folders([str(mine)])


def test_check_names_each_image_without_a_label(mine, call):
    """For a user's own data set, the error for a missing label image says where to put it and offers no download."""
    trees.write(mine / "img_dir/train/b.jpg", np.zeros((40, 50, 3), np.uint8))
    trees.write(mine / "ann_dir/train/b_mask.png", np.ones((40, 50), np.uint8))
    code, said, err = call(CHECK, mine)
    assert code == 1, said + err
    assert re.search("wrong: my_town_train: .*b.jpg has no label image .*b.png", said)
    with pytest.raises(FileNotFoundError, match=f"put it into {mine}, your own data set"):
        records_of(f"{mine}:train")


def own_set(folder: Path, labels: np.ndarray, text: str, split: str = "train") -> Path:
    noise = np.random.default_rng(len(labels)).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    for kind, image in (("img_dir", noise), ("ann_dir", labels)):
        (folder / kind / split).mkdir(parents=True)
        Image.fromarray(image).save(folder / kind / split / "a.png")
    (folder / "dataset.yaml").write_text(text)
    return folder


def test_masks_of_0_and_255_are_told(tmp_path, call):
    mask = np.zeros((40, 50), np.uint8)
    mask[:10] = 255
    code, said, _ = call(CHECK, own_set(tmp_path / "town", mask, "name: town\nclasses: [rest, roof]\n"))
    assert code == 1
    assert "note: town_train: 25.0 % of the pixels are ignored or have no class" in said
    assert "wrong: town_train: class 'roof' never occurs: no pixel has its label value 1, and pixels of 255" in said
    assert "are ignored (masks of 0 and 255 hold no 1); correct the labels or dataset.yaml" in said


def test_a_declared_class_may_lack_in_validation_but_not_in_training(tmp_path, call):
    text = "name: town\nclasses: [rest, roof, {name: other, background: true}]\n"
    folder = own_set(tmp_path / "town", np.eye(40, 50, dtype=np.uint8), text)
    own_set(tmp_path / "more", np.zeros((30, 50), np.uint8), text, "val")
    for kind in ("img_dir", "ann_dir"):
        (tmp_path / "more" / kind / "val").rename(folder / kind / "val")
    code, said, _ = call(CHECK, folder)
    assert code == 0, said
    text = text.replace("roof,", "roof, pool,")
    code, said, _ = call(CHECK, own_set(tmp_path / "pool", np.eye(40, 50, dtype=np.uint8), text))
    assert (code, "class 'pool' never occurs: no pixel has its label value 2; correct" in said) == (1, True), said
    ignoring = text.replace("pool, ", "") + "ignore: [1, 255]\n"
    code, said, _ = call(CHECK, own_set(tmp_path / "ignoring", np.eye(40, 50, dtype=np.uint8), ignoring))
    assert (code, "class 'roof' never occurs: its label value 1 is also ignored" in said) == (1, True), said


def test_own_labels_may_be_tiff_and_have_any_case(tmp_path, call):
    folder = own_set(tmp_path / "town", np.eye(40, 50, dtype=np.uint8), "name: town\nclasses: [rest, roof]\n")
    (folder / "img_dir/.ipynb_checkpoints").mkdir()
    (folder / "img_dir/train/a.png").rename(folder / "img_dir/train/a.PNG")
    Image.fromarray(np.eye(40, 50, dtype=np.uint8)).save(folder / "ann_dir/train/a.TIF")
    (folder / "ann_dir/train/a.png").unlink()
    code, said, err = call(CHECK, folder)
    assert code == 0, said + err


def test_a_limit_below_1_is_an_error(call):
    code, _, err = call(CHECK, "dubai", "--limit", "0")
    assert (code, "--limit 0 is out of range: 1 or more" in err) == (2, True)
