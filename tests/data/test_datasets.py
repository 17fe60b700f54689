"""The table of rows, and the readers of what needs no preparation: scenes, captions, questions, shards, one's own."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import published_trees as trees
import pytest
from conftest import ROOT
from detectron2.data import MetadataCatalog
from PIL import Image

from skysense_o.config import default_config
from skysense_o.data.captions import load_record_image, read_captioned_images
from skysense_o.data.catalog import SPECS, find, records_of, register_folders, spec_of
from skysense_o.data.classes import load_classes, table_of
from skysense_o.data.datasets.classification import SCENES
from skysense_o.data.labels import BadData, read_labels
from skysense_o.data.mapper import TrainingMapper, read_image_and_labels
from skysense_o.data.own import own_spec

CHECK = "tools/check_dataset.py"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write_json(path: Path, body) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


def test_split_names_are_unique_and_specs_are_complete():
    names = Counter(name for spec in SPECS for name in spec.split_names())
    assert [name for name, count in names.items() if count > 1] == []
    for spec in SPECS:
        assert spec.homepage.startswith("http"), spec.name
        assert spec.licence, spec.name
        assert set(spec.counts) <= set(spec.splits), spec.name
        assert set(spec.aliases.values()) <= set(spec.splits), spec.name
        if spec.class_table_name:
            assert len(load_classes(spec.class_table_name)) > (spec.task not in ("boxes", "points", "shapes"))


def test_sets_of_one_class_are_those_whose_label_0_is_not_that_class():
    for spec in SPECS:
        if spec.task == "segmentation" and spec.class_table_name:
            rest = load_classes(spec.class_table_name).classes[0]
            assert spec.one_class == rest.startswith("not "), spec.name


def test_published_split_names_are_aliases_of_ours():
    for alias, name in {
        "isaid_test": "isaid_val", "isaid_sem_seg_val": "isaid_val", "potsdam_test": "potsdam_val",
        "loveda_test": "loveda_val", "oem_test": "oem_val", "samrs_fast_test": "samrs_fast_val",
        "floodnet_sem_seg_test": "floodnet_test", "uavid_sem_seg_val": "uavid_val",
    }.items():  # fmt: skip
        assert find(alias) == find(name)
        assert MetadataCatalog.get(alias).class_table == find(name)[0][0].class_table_name


def test_class_files_are_those_of_the_published_benchmarks():
    """Names in index order, as far as the list of published names is at hand."""
    path = ROOT / "../shared/facts/benchmarks.json"
    if not path.is_file():
        pytest.skip("no ../shared/facts/benchmarks.json here")
    for name, body in json.loads(path.read_text()).items():
        assert list(load_classes(name).classes) == [c.replace("_", " ") for c in body["classes"]], name


def test_the_open_world_table_is_a_tree_of_about_a_hundred_classes():
    table = load_classes("open_world")
    assert 300 <= len(table) <= 400
    assert len({w.lower() for n, s in zip(table.classes, table.synonyms) for w in (n, *s)}) > 500
    groups = set(table.parents) - set(table.classes) - {""}
    assert groups == {"coast", "ice and snow", "relief", "people", "sport and leisure", "industry and energy",
                      "small structures", "sky and artefacts"}  # fmt: skip
    parent = dict(zip(table.classes, table.parents))
    assert parent["lake"] == "water"
    assert parent["water"] == ""


def test_the_table_of_datasets_readme_matches_the_specs(call):
    code, table, _ = call(CHECK, "--list", "--markdown")
    assert code == 0
    assert table.strip() in (ROOT / "datasets/README.md").read_text(), f"run python {CHECK} --list --markdown"
    code, lines, _ = call(CHECK, "--list")
    assert len(lines.strip().splitlines()) == len(SPECS)


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_a_missing_set_says_where_it_looked_and_what_to_run(name, data):
    spec, split = find(name)[0]
    with pytest.raises(FileNotFoundError) as error:
        records_of(f"{name}_{split}")
    assert str(data / (spec.folder or spec.name)) in str(error.value)
    assert spec.homepage in str(error.value)
    assert spec.prepare in str(error.value)


@pytest.mark.parametrize("name", [spec.name for spec in SCENES])
def test_scene_classification_sets_are_read_as_published(name, data, call):
    count = trees.scenes(data, name)
    records, table = records_of(f"{name}_all"), load_classes(name)
    assert len(records) == count
    for record in records:
        assert Path(record["file_name"]).parent.name == table.folders[record["label"]]
    assert len({r["file_name"] for r in records}) == count, "SIRI-WHU's files of different classes share their names"
    code, said, _ = call(CHECK, f"{name}_all")
    assert code == 0, said
    assert table.classes[-1] in said


def test_a_class_folder_may_be_spelled_differently_and_a_missing_one_is_an_error(data, call):
    trees.scenes(data, "aid")
    (data / "aid/AID/BareLand").rename(data / "aid/AID/bare_land")
    assert len(records_of("aid_all")) == 60
    for path in sorted((data / "aid/AID/Airport").iterdir()):
        path.unlink()
    (data / "aid/AID/Airport").rmdir()
    with pytest.raises(FileNotFoundError, match="has no folder 'Airport'"):
        records_of("aid_all")


def test_uc_merced_is_split_like_its_captions(data):
    trees.scenes(data, "ucmerced")
    lines = [{"image": "images/beach/beach_1.jpg", "split": "test", "captions": ["a beach", "sand"]}]
    (data / "ucmerced/captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [Path(r["file_name"]).stem for r in records_of("ucmerced_test")] == ["beach_1"]


def test_captions_in_karpathy_format_are_read(data):
    for name, index, folder in (
        ("rsicd", "dataset_rsicd.json", "RSICD_images"),
        ("rsitmd", "dataset_RSITMD.json", "images"),
    ):
        images = [
            {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": " A lake . "}, {"raw": "water ."}]}
            for split in ("train", "test")
        ]
        write_json(data / name / index, {"images": images, "dataset": name})
        for split in ("train", "test"):
            trees.write(data / name / folder / f"{split}.jpg", np.zeros((8, 8, 3), np.uint8))
        (record,) = records_of(f"{name}_test")
        assert record["captions"] == ["A lake .", "water ."]
        assert record["file_name"].endswith("test.jpg")
    (data / "rsicd/RSICD_images/test.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="test.jpg is missing"):
        records_of("rsicd_test")


def test_caption_tables_of_skyscript_and_rs5m_are_read(data):
    folder = data / "skyscript"
    trees.write(folder / "images2/a1_US_15.jpg", np.zeros((8, 8, 3), np.uint8))
    (folder / "SkyScript_val_5K_filtered_by_CLIP_openai.csv").write_text(
        'filepath,title,title_multi_objects\nimages2/a1_US_15.jpg,a road,"a road, beside a lake"\n'
    )
    assert records_of("skyscript_val")[0]["captions"] == ["a road, beside a lake", "a road"]
    trees.write(data / "rs5m/images/p.jpg", np.zeros((8, 8, 3), np.uint8))
    (data / "rs5m/pub11_train.csv").write_text("img_name,caption\np.jpg,a field\n")
    assert records_of("rs5m_table_train")[0]["captions"] == ["a field"]
    (data / "rs5m/pub11_train.csv").write_text("url;caption\n")
    with pytest.raises(ValueError, match=r"has columns separated by ';': .* separate them with commas"):
        records_of("rs5m_table_train")


@pytest.mark.parametrize(("image", "text"), [("jpg", "txt"), ("img_content", "caption"), ("jpg", "json")])
def test_shards_are_read_without_unpacking(data, call, image, text):
    trees.shard(data / "rs5m/pub11-train-0000.tar", [("a/x.1", "a lake"), ("b", "a road")], image, text)
    records = records_of("rs5m_train")
    assert [r["captions"] for r in records] == [["a lake"], ["a road"]]
    assert load_record_image(records[1]).size == (7, 9)
    assert call(CHECK, "rs5m_train")[0] == 0


def test_a_shard_sample_without_a_caption_is_an_error(data):
    trees.shard(data / "webdataset/00.tar", [("a", "a lake"), ("b", "")])
    with pytest.raises(FileNotFoundError, match="sample 'b' has no caption"):
        records_of("webdataset_train")
    assert len(records_of("webdataset_train", skip_bad=True)) == 1


@pytest.mark.parametrize(("name", "stem", "folder"), [("rsvqa_lr", "LR", "Images_LR"), ("rsvqa_hr", "USGS", "Data")])
def test_rsvqa_is_read(data, name, stem, folder, call):
    base = data / name
    questions = [
        {
            "id": 0,
            "active": True,
            "img_id": 5,
            "type": "presence",
            "question": "Is a road present?",
            "answers_ids": [9],
        },
        {"id": 1, "active": False},
    ]
    write_json(base / f"{stem}_split_test_questions.json", {"questions": questions})
    answers = [{"id": 8, "active": False}, {"id": 9, "active": True, "answer": "yes"}]
    write_json(base / f"{stem}_split_test_answers.json", {"answers": answers})
    trees.write(base / folder / "5.tif", np.zeros((8, 8, 3), np.uint8))
    (record,) = records_of(f"{name}_test")
    assert (record["question"], record["answer"], record["kind"]) == ("Is a road present?", "yes", "presence")
    assert call(CHECK, f"{name}_test")[0] == 0
    (base / f"{stem}_split_test_answers.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no .*_answers.json beside it"):
        records_of(f"{name}_test")


def test_rsivqa_is_read(data):
    trees.scenes(data, "ucmerced")
    index = data / "ucmerced/ucm_vqa.txt"
    index.write_text("UCM\\beach_1.tif:what is the theme of this image?beach\nbeach_1.tif:Is it so? Really?yes\n")
    records = records_of("rsivqa_all")
    assert [r["answer"] for r in records] == ["beach", "yes"]
    assert records[1]["question"] == "Is it so? Really?"
    assert records[0]["file_name"].endswith("beach/beach_1.tif")
    index.write_text("beach_1.tif:How many boats?two\nbeach_1.tif:Is it so?yes\n")
    assert [r["answer"] for r in records_of("rsivqa_train_count")] == ["two"]
    index.write_text("beach_1.tif what is it\n")
    with pytest.raises(FileNotFoundError, match="line 1: .* is not image:question"):
        records_of("rsivqa_all")


@pytest.mark.parametrize(("name", "file"), [("siri_whu_vqa", "cls_SIRI_WHU.json"), ("aid_vqa", "cls_AID.json")])
def test_vhm_questions_are_read(data, name, file):
    turns = [{"from": "human", "value": "<image>\nWhich one? pond, river."}, {"from": "gpt", "value": "pond"}]
    write_json(data / "vhm_eval" / file, [{"image": "0001.tif", "image_path": "x/pond", "conversations": turns}])
    trees.write(data / "vhm_eval/x/pond/0001.tif", np.zeros((8, 8, 3), np.uint8))
    (record,) = records_of(f"{name}_test")
    assert (record["question"], record["answer"]) == ("Which one? pond, river.", "pond")


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
        ("classes: [water]\nsuffix: .png", r"holds \['suffix'\]: permitted are classes"),
        ("classes: []", r"'classes' is \[\]: it must list the classes"),
        ("classes: [{id: 4, name: a}]", r"ids must run 0, 1, 2, ... in order, found \[4\]"),
        ("classes: [a, a]", r"'classes' has \['a'\] for two classes"),
        ("classes: [Water, water]", r"'classes' has \['Water', 'water'\] for two classes"),
        ("classes: {roof: 1, water: 0}", r"'classes' is {'roof': 1, 'water': 0}: it must list the classes in"),
        ("classes: water", "'classes' is 'water': it must list the classes"),
        ("name: a", "has no 'classes'"),
        ("classes: [1, 2]", "'classes', entry 0 is 1: .* names"),
        ("classes: [{name: a, colour: [1, 2, 3]}]", r"entry 0 \('a'\) has \['colour'\]: permitted are id, name"),
        ("classes: [{name: a, synonyms: lake}]", "has synonyms 'lake': it must be a list of words"),
        ("classes: [{name: a, synonyms: [1]}]", r"has synonyms \[1\]: it must be a list of words"),
        ("classes: [{name: a, color: blue}]", "has color 'blue': permitted are three numbers from 0 to 255"),
        ("classes: [{name: a, color: [300, -5]}]", r"has color \[300, -5\]: permitted are three numbers from 0 to 255"),
        ("classes: [{name: a, color: [0, 0, 256]}]", r"has color \[0, 0, 256\]: permitted are three numbers"),
        ("classes: [{name: a, background: 1}]", "has background 1: permitted is true or false"),
        ("classes: [a]\nignore:", "'ignore' is None: permitted is a whole number from 0 to 65534, or a list"),
        ("classes: [a]\nignore: ['255']", r"'ignore' is \['255'\]: permitted is a whole number"),
        ("classes: [a]\nignore: 70000", "'ignore' is 70000: permitted"),
        ("classes: [a]\nignore: -1", "'ignore' is -1: permitted"),
        ("classes: [a]\nignore: none", "'ignore' is 'none': permitted"),
        ("classes: [a]\nignore: true", "'ignore' is True: permitted"),
        ("classes: [a]\noffset:", "'offset' is None: permitted is a whole number from 0 to 65534"),
        ("classes: [a]\noffset: -1", "'offset' is -1: permitted"),
        ("classes: [a]\noffset: 1.5", "'offset' is 1.5: permitted"),
        ("classes: [a]\nname: 7", "'name' is 7: it must be text"),
        (f"classes: {[f'c{i}' for i in range(256)]}", "'classes' has 256 classes: at most 255"),
        ("classes: ['a|b']", r"'classes' has 'a.b': write further words as synonyms"),
        ("classes: [{name: a, synonyms: [B]}, b]", "'classes' has the word 'b' for 'a' and for 'b': give each"),
        ("classes: [a]\nname: ../b", "'name' is '../b': files are named after it, so at most 100 characters without"),
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
        ("- water\n- road", r"holds \['water', 'road'\]: permitted are classes"),
        ("classes: [a]\nignore: [[255]]", r"'ignore' is \[\[255\]\]: permitted"),
        ("classes: [a]\nignore: .nan", "'ignore' is nan: permitted"),
        ("classes: [{name: a, background: 'yes'}]", "has background 'yes': permitted is true or false"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{y}: &{y} [*{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}]\n"
                for x, y in zip("abcdefghijk", "bcdefghijkl")
            )
            + "classes: [a]\nname: *l",
            r"holds \['a', 'b', .*permitted are classes",
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
        ("a.jsonl", '{"image": 5, "caption": "a road"}\n', "line 1: 'image' is 5: text or null is permitted"),
        ("a.jsonl", '{"image": "a.png", "captions": ["a", {}]}\n', "line 1: a caption is an object of 0: text is"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: .* is nested too deeply"),
        ("a.jsonl", '{"image": "a.png", "caption": "a road"}\n["b"]\n', "line 2: .* is not a JSON object"),
        (
            "a.jsonl",
            '{"image": "a.png", "caption": 7}\n',
            "line 1: 'caption' is 7: a list or text or null is permitted",
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
    with pytest.raises(KeyError, match="has no split 'test': there are train, val"):
        find(f"{mine}:test")
    (mine / "dataset.yaml").write_text("name: dubai\nclasses: [a]")
    own_spec.cache_clear()
    with pytest.raises(ValueError, match="the name 'dubai' belongs to another data set"):
        register_folders([str(mine)])


def test_class_tables_check_themselves():
    with pytest.raises(ValueError, match="'classes' must list names"):
        table_of([{"color": [1, 2, 3]}], "x.json")
    assert len(set(table_of([f"c{i}" for i in range(300)], "x").colors)) > 250


def test_images_in_both_train_and_test_are_found(dubai, call):
    image = dubai / "images/tile5_001.jpg"
    aerial = Image.open(ROOT / "demo/yellowstone_0.4m.jpg")  # made-up images are mostly even: noise to a hash
    aerial.resize((131, 97)).save(dubai / "images/tile1_001.jpg")
    aerial.resize((120, 90)).resize((131, 97)).save(image, quality=60)
    code, said, _ = call(CHECK, "dubai")
    assert code == 1
    assert "1 images look like images of dubai_train: tile1_001.jpg = tile5_001.jpg" in said


def test_a_manifest_is_equal_for_equal_data_and_different_for_other_data(dubai, call, tmp_path):
    def manifest() -> list[dict]:
        assert call(CHECK, "dubai_val", "--json", tmp_path / "m.json")[0] == 0
        return json.loads((tmp_path / "m.json").read_text())

    first = manifest()
    label = dubai / "labels/tile5_001.png"
    array = np.array(Image.open(label))
    Image.fromarray(array).save(label, compress_level=1)  # the same pixels in another file
    assert manifest() == first
    assert first[0]["classes"]["water"]["images"] == 2
    array[50, 50] = (array[50, 50] + 1) % 5
    Image.fromarray(array).save(label)
    assert manifest()[0]["sha256"] != first[0]["sha256"]


def test_check_names_each_image_without_a_label(mine, call):
    """With the cure for one's own data, which is no download."""
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


def write_tiff(path: Path, labels: np.ndarray) -> None:
    """A label image of any type, as GIS programs write it, under a name that says PNG."""
    Image.fromarray(labels).save(path, "TIFF")


@pytest.mark.parametrize("kind", ["1 bit", "8 bits", "palette", "16 bits", "16 bits, high byte first", "int32"])
def test_labels_of_every_depth_are_read(tmp_path, kind):
    ids = np.random.default_rng(0).integers(0, 2, (20, 30), dtype=np.uint8)
    dtype = {"int32": np.int32, "16 bits": np.uint16}.get(kind, np.uint8)
    image = Image.fromarray(ids.astype(dtype))
    if kind == "1 bit":
        image = Image.fromarray(ids.astype(bool))
    elif kind == "palette":
        image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.tif")
    if kind == "16 bits, high byte first":
        ids = ids.astype(np.uint16) + 256
        Image.frombytes("I;16B", (30, 20), ids.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert np.array_equal(read_labels(tmp_path / "a.tif"), ids)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: Image.new("RGB", (131, 97)).save(p), "is a RGB image: labels must be one channel"),
        (lambda p: Image.new("L", (131, 97), 77).save(p), r"holds ids \[77\]: permitted are 0 to 4"),
        (lambda p: p.write_bytes(p.read_bytes()[:70]), "is cut short or damaged"),
        (lambda p: Image.new("L", (9, 9)).save(p), r"is \(9, 9\), its image \(97, 131\)"),
        (lambda p: write_tiff(p, np.full((97, 131), -1, np.int32)), "holds the id -1: ids are 0 or more"),
    ],
)
def test_check_lists_each_bad_file_and_continues(dubai, call, spoil, says):
    spoil(dubai / "labels/tile5_001.png")
    code, said, _ = call(CHECK, "dubai_val")
    assert code == 1
    assert "tile5_001.png" in said
    assert re.search(says, said)
    assert "1 wrong" in said


def test_check_of_an_unknown_name_suggests_similar_ones(call):
    code, _, err = call(CHECK, "loveda_vl")
    assert code == 2
    assert "near it: loveda_val" in err
    assert "give the name of a data set" in call(CHECK)[2]


REAL = ROOT / "../shared/data"


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data here")
@pytest.mark.parametrize(("name", "images"), [("dubai", 63), ("ucmerced", 2100), ("rsivqa_test", 210)])
@pytest.mark.slow
def test_the_real_data_sets_pass_their_check(name, images, monkeypatch, call, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(REAL.resolve()))
    code, said, _ = call(CHECK, name, "--json", tmp_path / "m.json")
    assert code == 0, said
    assert sum(part["images"] for part in json.loads((tmp_path / "m.json").read_text())) == images


def test_bad_data_is_a_value_error():
    assert issubclass(BadData, ValueError)
    assert default_config().DATALOADER.SKIP_BAD is False
    assert spec_of("loveda").offset == 1
