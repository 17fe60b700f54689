"""Tests of the data engine's steps, from images to a data set that can be trained on, and of their errors."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_scene
from made_scenes import fields, write_scene
from PIL import Image
from review_work import Said
from training.test_whole_path import train

pytest.importorskip("pyarrow", reason='the data engine needs pip install -e ".[engine]"')
pytest.importorskip("faiss", reason='the data engine needs pip install -e ".[engine]"')

from skimage.measure import label

from skysense_o.data.catalog import records_of
from skysense_o.data_engine.annotations import tile_annotations
from skysense_o.data_engine.collect import collect, spans
from skysense_o.data_engine.deduplicate import deduplicate, first_of_each, near_vectors, same_hash
from skysense_o.data_engine.name import name_regions
from skysense_o.data_engine.namers import VocabularyNamer
from skysense_o.data_engine.partition import borders, merge_regions, paint_masks, tidy
from skysense_o.data_engine.propose import described, propose, proposer
from skysense_o.data_engine.publish import publish
from skysense_o.data_engine.splitting import split
from skysense_o.data_engine.work_folder import WorkFolder, read_json, read_map, write_json, write_map
from skysense_o.vocabulary import Vocabulary

ENGINE = "tools/data_engine.py"
WORDS = "water,land,road,building,vegetation"


@pytest.fixture
def survey(tmp_path) -> Path:
    """Return a folder of five images, two duplicates (PNG and JPEG), a georeferenced raster and an unreadable file."""
    folder, rng = tmp_path / "survey", np.random.default_rng(3)
    folder.mkdir()
    for i in range(5):
        image, _ = draw_scene(rng, 96 + 8 * i, 120)
        noise = rng.integers(0, 90, (7, 9, 3)).astype(np.uint8)
        Image.fromarray(image // 2 + np.asarray(Image.fromarray(noise).resize(image.shape[1::-1]))).save(
            folder / f"{i}.png"
        )
    Image.open(folder / "0.png").save(folder / "copy.png")
    Image.open(folder / "1.png").save(folder / "poor.jpg", quality=60)
    write_scene(folder / "scene.tif", fields(120, 200))
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    return folder


@pytest.fixture
def work(survey, tmp_path) -> WorkFolder:
    folder = WorkFolder(tmp_path / "work")
    images = sorted(p for p in survey.iterdir() if p.stem != "broken")
    collect(folder, images, side=128, licence="CC0", credit="A. Person")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_one_command_makes_a_set_that_passes_the_check(call, survey, tmp_path):
    """One command makes a valid data set and reports an unreadable image; running the command again changes nothing."""
    out = tmp_path / "work"
    words = ("all", "--input", survey, "--classes", WORDS, "--tile", "128", "--work", out, "--confidence", "0.1")
    words += ("--val", "0.3", "--method", "superpixels", "--coarse", "0.5", "--licence", "CC0")
    code, text, err = call(ENGINE, *words)
    assert code == 1, err
    assert "collect: 9 tiles, 8 images read now, 1 unreadable" in text
    assert "7 of 9 tiles kept" in text
    assert "\nerror: broken.png is not an image that can be read" in err
    assert str(tmp_path) not in (out / "catalog_errors.jsonl").read_text()
    before = hashes(out)
    assert call(ENGINE, *words)[0] == 1
    assert hashes(out) == before
    code, text, _ = call("tools/check_dataset.py", out / "set")
    assert code == 0, text
    assert "nothing wrong" in text
    manifest = read_json(out / "set/manifest.json")["files"]
    assert all(hashlib.sha256((out / "set" / f).read_bytes()).hexdigest() == m["sha256"] for f, m in manifest.items())
    assert {"img_dir", "ann_dir", "figures"} < {Path(f).parts[0] for f in manifest}
    for line in (out / "set/skysa_dataset.jsonl").read_text().splitlines():
        record = json.loads(line)
        labels = np.asarray(Image.open(out / "set" / record["segmentation"]))
        image = Image.open(out / "set" / record["flickr_url"])
        assert labels.shape == (image.height, image.width)
        assert set(np.unique(labels)) - {255} == set(range(len(record["ann_list"])))
        assert {entry["category_name"] for entry in record["ann_list"]} <= set(WORDS.split(","))
    assert "| licence | tiles |\n|---|---|\n| CC0 |" in (out / "set/DATASHEET.md").read_text()
    published = b"".join(p.read_bytes() for p in (out / "set").rglob("*") if p.suffix in (".json", ".jsonl", ".md"))
    assert str(tmp_path).encode() not in published


@pytest.mark.slow
def test_a_published_set_trains(call, survey, tmp_path):
    out = tmp_path / "work"
    words = ("--input", survey, "--classes", WORDS, "--tile", "128", "--work", out, "--confidence", "0.05")
    call(ENGINE, "all", *words, "--val", "0.3", "--coarse", "0.4", "--by", "tower", "--tower", "mini")
    keys = ("DATASETS.TRAIN", f"('{out / 'set'}:graph_train',)", "DATASETS.TEST", "()", "INPUT.TEXT_BATCH", "5")
    done = train(tmp_path / "run", *keys, "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/model_final.safetensors").is_file()


def test_tiles_are_disjoint_and_cover_the_image(work, survey):
    rows = work.catalog()
    whole = np.asarray(Image.open(survey / "4.png"))
    parts = [row for row in rows if row["source"] == "4.png"]
    assert len(parts) == 1  # the image is 128 x 120, so it is a single tile
    assert (work.image(parts[0]) == whole).all()
    scene = sorted((row for row in rows if row["source"] == "scene.tif"), key=lambda row: row["column"])
    assert [(row["row"], row["column"], row["height"], row["width"]) for row in scene] == [
        (0, 0, 120, 100),
        (0, 100, 120, 100),
    ]
    assert scene[1]["transform"][:3] == [2.0, 0.0, 500200.0]
    assert scene[1]["gsd"] == pytest.approx(2.0)
    assert "UTM zone 33N" in scene[1]["crs"]
    assert {row["licence"] for row in rows} == {"CC0"}
    assert [list(s) for s in spans(10, 4)] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9]]


def test_images_with_the_same_file_name_are_kept_apart_and_later_ones_are_added(work, survey, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (40, 30), (200, 30, 10)).save(tmp_path / "other/0.png")
    before = {row["tile"] for row in work.catalog()}
    assert collect(work, [tmp_path / "other/0.png"], side=128).sources == 1
    added = {row["tile"] for row in work.catalog()} - before
    assert len(added) == 1
    assert len(before) + 1 == len(work.catalog())
    with pytest.raises(ValueError, match="--tile 8 is out of range: 16 pixels at least"):
        collect(work, [], side=8)


def test_a_folder_with_short_tile_ids_is_resumed(survey, tmp_path):
    """In work folders of earlier versions, tile ids end in 8 hexadecimal digits instead of 16; these ids are kept."""
    work = WorkFolder(tmp_path / "work")
    collect(work, [survey / "0.png"], side=64)
    lines = [json.loads(line) for line in (work / "catalog.jsonl").read_text().splitlines()]
    (old,) = [line for line in lines if line.get("row") == 0 and line.get("column") == 0]
    short = old["tile"]["tile"][:-8]
    assert len(old["tile"]["tile"].rpartition("_")[2]) == 16
    (work / f"tiles/{short}.png").write_bytes((work / old["tile"]["file"]).read_bytes())
    old["tile"].update(tile=short, file=f"tiles/{short}.png")
    (work / "catalog.jsonl").write_text(json.dumps(old) + "\n")  # as if killed after the first tile
    collect(work, [survey / "0.png"], side=64)
    tiles = [row["tile"] for row in work.catalog()]
    assert short in tiles
    assert len(tiles) == 4
    assert all(work.image(row).shape[2] == 3 for row in work.catalog())


def test_parts_of_a_raster_without_data_are_left_out(tmp_path):
    pixels = fields(64, 200)
    pixels[:, :, :110] = 0
    write_scene(tmp_path / "half.tif", pixels, nodata=0)
    work = WorkFolder(tmp_path / "work")
    result = collect(work, [tmp_path / "half.tif"], side=100)
    assert (result.tiles, result.empty) == (1, 1)


def test_of_copies_and_near_copies_one_is_kept(work, mini):
    rows = {row["tile"].rpartition("_")[0]: row for row in deduplicate(work, mini)}
    assert (rows["copy"]["kept"], rows["copy"]["why"], rows["copy"]["distance"]) == (False, "hash", 0.0)
    assert rows["copy"]["of"].startswith("0_")
    assert not rows["poor"]["kept"]
    assert rows["poor"]["of"].startswith("1_")
    assert all(rows[str(i)]["kept"] for i in range(5))
    assert len(work.kept()) == len(work.catalog()) - 2


def test_tiles_like_an_image_of_a_test_set_are_left_out(work, survey, dubai):
    Image.open(survey / "2.png").save(dubai / "images/tile5_001.jpg", quality=90)
    rows = {row["tile"].rpartition("_")[0]: row for row in deduplicate(work, None, against=["dubai_val"], side=128)}
    assert (rows["2"]["kept"], rows["2"]["why"], rows["2"]["of"]) == (False, "leak", "set:dubai_val/tile5_001.jpg")
    assert rows["3"]["kept"]
    with pytest.raises(KeyError, match="unknown data set 'no_such'"):
        deduplicate(work, None, against=["no_such"])


def test_neighbour_search_equals_brute_force():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    bits[100] = bits[7]
    bits[200] = bits[7] ^ np.array([3] + [0] * 31, np.uint8)
    bits[201] = bits[7]
    assert sorted(same_hash(bits, 8)) == [(100, 7, 0.0), (200, 7, 2), (201, 7, 0.0)]
    vectors = rng.normal(size=(300, 24)).astype(np.float32)
    vectors[50] = vectors[3] + 0.02 * rng.normal(size=24)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    plain = {(i, j) for i, j in np.argwhere(cosines >= 0.7).tolist() if j < i}
    assert {(i, j) for i, j, _ in near_vectors(vectors, 0.3)} == plain
    assert (50, 3) in {(i, j) for i, j, _ in near_vectors(vectors, 0.3, exact=10)}, (
        "the approximate search by an HNSW graph must find this pair, too"
    )


def test_a_chain_of_small_differences_is_not_removed_as_a_whole():
    chain = [(1, 0, 0.1), (2, 1, 0.1), (3, 2, 0.1)]
    assert first_of_each(chain, 0) == {1: (0, 0.1), 3: (2, 0.1)}
    assert first_of_each(chain, 2) == {2: (1, 0.1)}, "test images must always be kept"


def test_regions_are_connected_and_small_ones_are_merged():
    labels = np.zeros((40, 50), int)
    labels[:, 20:] = 5
    labels[5:8, 30:33] = 9  # a region of nine pixels, which is too small
    labels[20:30, 2:12] = 5  # the same label in a second place
    labels[39, 0] = 7
    regions = tidy(labels, 20)
    assert regions.dtype == np.uint16
    assert sorted(np.unique(regions)) == [0, 1, 2]
    assert (regions[5:8, 30:33] == 1).all(), "a small region must be merged into the region that surrounds it"
    assert (regions[20:30, 2:12] == 2).all()
    assert regions[39, 0] == 0, "a small piece surrounded by unassigned pixels must become unassigned"
    one = np.full((4, 4), 3)
    assert (tidy(one, 100) == 1).all(), "a piece without neighbours must be kept, even if it is small"
    entries = described(regions, np.where(regions == 2, 0.75, 0.5))
    assert entries[1] == {"region": 2, "box": [2, 20, 12, 30], "pixels": 100, "score": 0.75}
    assert sum(e["pixels"] for e in entries) + (regions == 0).sum() == regions.size


def merge_regions_naively(pieces: np.ndarray, least: int) -> list[int]:
    """Naive reference for merging small regions: compute all sizes and borders again after each merge."""
    pieces = pieces.copy()
    parent = list(range(int(pieces.max()) + 1))
    while True:
        pairs, lengths = borders(pieces)
        sizes = np.bincount(pieces.ravel(), minlength=len(parent)).tolist()
        neighbours = {k: {} for k in range(len(parent))}
        for (a, b), length in zip(pairs.tolist(), lengths.tolist()):
            neighbours[a][b] = neighbours[b][a] = length
        small = [(size, k) for k, size in enumerate(sizes) if 0 < size < least and neighbours[k]]
        if not small:
            return parent
        _, k = min(small)
        to = max(neighbours[k], key=lambda other: (neighbours[k][other], -other))
        pieces[pieces == k] = to
        parent = [to if p == k else p for p in parent]


@pytest.mark.parametrize("least", [2, 6, 40, 10_000])
def test_merging_regions_equals_the_naive_form(least):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pieces = label(rng.integers(0, 3, (18, 23)), connectivity=1, background=-1) - 1
        assert merge_regions(pieces, least).tolist() == merge_regions_naively(pieces, least)


def test_merging_ten_thousand_pieces_takes_little_time():
    """Regression: a sorted list instead of a heap made the time grow with the square of the number of pieces."""
    pieces = label(np.random.default_rng(0).integers(0, 5, (128, 128)), connectivity=1, background=-1) - 1
    assert pieces.max() > 9000
    begun = time.process_time()
    merge_regions(pieces, 30)
    assert time.process_time() - begun < 3


def test_large_masks_are_painted_first():
    masks = np.zeros((2, 10, 10), bool)
    masks[0, 4:6, 4:6] = True
    masks[1, 2:9, 2:9] = True
    labels, score = paint_masks(masks, np.array([0.3, 0.9]), (10, 10))
    assert (labels[4:6, 4:6] == 1).all()
    assert labels[2, 2] == 2
    assert labels[0, 0] == 0
    assert score[5, 5] == pytest.approx(0.3)


@pytest.mark.parametrize("method", ["superpixels", "words"])
def test_regions_by_tower_and_by_words(work, mini, method):
    find = proposer(method, mini, vocabulary=Vocabulary.parse("water,land", "road"), regions=0.5)
    assert propose(work, find) == []
    for row in work.kept():
        regions = work.regions(row["tile"])
        entries = read_json(work / f"regions/{row['tile']}.json")
        assert regions.shape == (row["height"], row["width"])
        assert [e["region"] for e in entries] == list(range(1, int(regions.max()) + 1))
        assert all(0 <= e["score"] <= 1 and e["pixels"] >= 100 for e in entries)
        if method == "superpixels":
            assert regions.min() == 1


def test_superpixels_follow_clear_edges(mini):
    image, labels = draw_scene(np.random.default_rng(0), 128, 160)
    found, _ = proposer("superpixels", mini)(image)
    regions = tidy(found, 100)
    for c in (0, 2, 3):
        is_class, parts = labels == c, [regions == k for k in np.unique(regions)]
        assert max((part & is_class).sum() / (part | is_class).sum() for part in parts) > 0.55, c


def test_a_missing_argument_of_a_method_raises_an_error(mini, words_only, tmp_path):
    with pytest.raises(ValueError, match="unknown method 'magic': choose one of superpixels, words, everything, sam"):
        proposer("magic", mini)
    with pytest.raises(ValueError, match="--method sam needs --sam FILE"):
        proposer("sam", None)
    with pytest.raises(ValueError, match="--method words needs classes: --classes, --dataset or --open-world"):
        proposer("words", mini)
    with pytest.raises(ValueError, match="these weights take words only"):
        proposer("everything", words_only)(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="--least 0 is out of range"):
        propose(WorkFolder(tmp_path), None, least=0)


def test_reviewers_decisions_override_the_model(halves, mini):
    """Reviewed regions are published whatever their confidence; pixels outside them are unlabelled."""
    name_regions(halves, Said("road", "tree"), mini.model)
    tiles = [row["tile"] for row in halves.kept()]
    final = np.ones((48, 64), np.uint16)
    final[:10] = 300
    write_map(halves / f"review/final/{tiles[0]}.png", final)
    write_json(halves / f"review/final/{tiles[0]}.json", [{"region": 300, "name": "lake", "confidence": 0.0}])
    statistics = publish(halves, confidence=0.95, val=0.0)
    assert statistics["images"] == {"all": 1, "train": 1, "reviewed by people": 1}
    labels = read_map(halves / f"set/ann_dir/train/{tiles[0]}.png")
    assert (labels[:10] == 0).all()
    assert (labels[10:] == 255).all()
    assert publish(halves, confidence=0.5, val=0.0)["names"] == 3
    assert "people decided on those of 1 of the 4" in (halves / "set/DATASHEET.md").read_text()


def spec_of(tile: str, source: str, **place) -> dict:
    return {"tile": tile, "source": source, "crs": "", "transform": None, "width": 10, "height": 10, **place}


def test_tiles_of_the_same_area_are_in_the_same_split():
    from rasterio.crs import CRS

    utm = CRS.from_epsg(32633).to_wkt()
    other = CRS.from_epsg(32632).to_wkt()
    rows = [spec_of(f"a{i}", "a.tif", crs=utm, transform=[2, 0, 500000 + 20 * i, 0, -2, 5200000]) for i in range(3)]
    # This tile begins where tile "a2" ends.
    rows += [spec_of("b", "b.tif", crs=utm, transform=[2, 0, 500060, 0, -2, 5200000])]
    rows += [spec_of("far", "far.tif", crs=other, transform=[2, 0, 300000, 0, -2, 5000000])]
    rows += [spec_of(f"s{i}", f"scene{i // 4}_{i % 4}.jpg") for i in range(12)]
    for seed in range(5):
        sides = split(rows, 0.35, seed, group=r"(scene\d+)_")
        assert len({sides[f"a{i}"] for i in range(3)} | {sides["b"]}) == 1
        assert all(len({sides[f"s{4 * k + i}"] for i in range(4)}) == 1 for k in range(3))
        assert 1 <= sum(side == "val" for side in sides.values()) <= 6
    assert set(split(rows[:3], 0.5, 0).values()) == {"train"}, "tiles of a single source must all be in one split"
    assert set(split(rows, 0.0, 0).values()) == {"train"}
    with pytest.raises(ValueError, match="--val 1.5 is out of range"):
        split(rows, 1.5, 0)
    with pytest.raises(ValueError, match=r"--group '\(' is not a regular expression"):
        split(rows, 0.1, 0, "(")


def test_a_published_folder_can_be_used_as_a_data_set_by_its_path(halves, mini):
    name_regions(halves, Said("road", "tree"), mini.model)
    publish(halves, val=0.25)
    assert len(records_of(f"{halves / 'set'}:train")) == 3
    assert records_of(f"{halves / 'set'}:val")[0]["names"] == ("road", "tree")
    with pytest.raises(KeyError, match="has no split 'graph_train'; its splits are train, val"):
        records_of(f"{halves / 'set'}:graph_train")


def test_a_failed_replacement_keeps_the_old_set(halves, mini, monkeypatch):
    name_regions(halves, Said("road", "tree"), mini.model)
    publish(halves, val=0.25)
    before = hashes(halves / "set")
    rename = Path.rename

    def fail_once(path, target):
        if path.name == "set.part":
            raise OSError("disk error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="disk error"):
        publish(halves, val=0.5)
    assert hashes(halves / "set") == before
    monkeypatch.undo()
    rename(halves / "set", halves / "set.old")  # the state after a kill between the two renames
    publish(halves, val=0.5)
    assert hashes(halves / "set") != before
    assert not (halves / "set.old").exists()


def test_other_options_need_a_restart(call, survey, tmp_path):
    out = tmp_path / "work"
    words = ("collect", "--input", survey / "0.png", "--work", out)
    code, _, err = call(ENGINE, *words, "--tile", "5")
    assert (code, "--tile 5 is out of range" in err) == (2, True)
    assert call(ENGINE, *words, "--tile", "128")[0] == 0, (
        "a command that failed for a wrong option must not be recorded"
    )
    code, _, err = call(ENGINE, *words, "--tile", "64")
    assert code == 2
    assert "collect ran with tile 128 in" in err
    assert "now it is 64: give the same value as before, another --work, or --restart" in err
    assert call(ENGINE, *words, "--tile", "64", "--restart")[0] == 0
    assert len(WorkFolder(out).catalog()) == 4
    (out / "review").mkdir()
    (out / "review/decisions.jsonl").write_text("{}\n")
    code, _, err = call(ENGINE, *words, "--tile", "32", "--restart")
    assert code == 2
    assert "holds decisions on regions that --restart would remove: move it away first" in err
    assert len(WorkFolder(out).catalog()) == 4


def test_a_step_run_too_early_names_the_step_to_run_first(call, survey, tmp_path):
    out = ("--work", tmp_path / "work")
    for words, hint in (
        (("propose",), "no catalog.parquet in .*: run the step collect first"),
        (("deduplicate", "--hashes-only"), "no catalog.parquet in .*: run the step collect first"),
        (("graph",), "no catalog.parquet in"),
    ):
        code, _, err = call(ENGINE, *words, *out)
        assert code == 2
        assert re.search(hint, err), err
    call(ENGINE, "collect", "--input", survey / "0.png", *out)
    for words, hint in (
        (("name", "--classes", WORDS), "run the step propose first"),
        (("publish",), "run the step name first"),
        (("publish", "--confidence", "3"), "--confidence 3.0 is out of range: 0 to 1"),
    ):
        code, _, err = call(ENGINE, *words, *out)
        assert (code, hint in err) == (2, True), err


def test_a_damaged_tile_is_reported_and_the_others_are_processed(work, mini):
    bad = work.catalog()[0]
    (work / bad["file"]).write_bytes(b"nothing")
    errors = propose(work, proposer("superpixels", mini))
    assert [e["tile"] for e in errors] == [bad["tile"]]
    assert len(list((work / "regions").glob("*.json"))) == len(work.catalog()) - 1
    errors = name_regions(work, VocabularyNamer(mini, Vocabulary.parse(WORDS)), mini.model)
    assert [e["tile"] for e in errors] == [bad["tile"]]
    assert sum(1 for _ in tile_annotations(work, 0.0)) == len(work.catalog()) - 1
    rows = {row["tile"]: row for row in deduplicate(work, None)}
    assert rows[bad["tile"]]["why"] == "unreadable"
    assert len(rows) == len(work.catalog())


def test_publishing_without_named_regions_raises_an_error(halves, mini):
    name_regions(halves, Said("road"), mini.model)
    with pytest.raises(ValueError, match="no region in .* has a name of confidence 0.99 or more: lower --confidence"):
        publish(halves, confidence=0.99)
