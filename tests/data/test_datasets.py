"""Tests of the data-set registry and of data sets that need no preparation: scenes, captions, questions, shards."""

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
from skysense_o.data.captions import load_record_image
from skysense_o.data.catalog import SPECS, find, records_of, spec_of
from skysense_o.data.classes import load_classes, table_of
from skysense_o.data.datasets.classification import SCENES
from skysense_o.data.labels import BadData, read_labels

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
    """Class files list the published class names in index order; the test is skipped without the published list."""
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
    assert len({r["file_name"] for r in records}) == count, (
        "SIRI-WHU uses the same file names in every class folder, so full paths must differ"
    )
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


def test_class_tables_check_themselves():
    with pytest.raises(ValueError, match="'classes' must list names"):
        table_of([{"color": [1, 2, 3]}], "x.json")
    assert len(set(table_of([f"c{i}" for i in range(300)], "x").colors)) > 250


def test_images_in_both_train_and_test_are_found(dubai, call):
    image = dubai / "images/tile5_001.jpg"
    # Use a real photo: images drawn by the tests are nearly uniform, so their perceptual hashes would be random.
    aerial = Image.open(ROOT / "demo/yellowstone_0.4m.jpg")
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
    Image.fromarray(array).save(label, compress_level=1)  # the same pixels in a different file
    assert manifest() == first
    assert first[0]["classes"]["water"]["images"] == 2
    array[50, 50] = (array[50, 50] + 1) % 5
    Image.fromarray(array).save(label)
    assert manifest()[0]["sha256"] != first[0]["sha256"]


def write_tiff(path: Path, labels: np.ndarray) -> None:
    """Write a label image as TIFF whatever its suffix, as GIS programs do."""
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
        (lambda p: Image.new("L", (131, 97), 77).save(p), r"holds ids \[77\]: they must be 0 to 4"),
        (lambda p: p.write_bytes(p.read_bytes()[:70]), "is cut short or damaged"),
        (lambda p: Image.new("L", (9, 9)).save(p), r"has the size \(9, 9\), but its image \(97, 131\)"),
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
    assert "similar: loveda_val" in err
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
