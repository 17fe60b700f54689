"""Tests of Sky-SA's files, its relation graph, words sampled from it, and training on data in Sky-SA's format."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import published_trees as trees
import pytest
import torch
from conftest import ROOT
from PIL import Image
from published_trees import relation
from training.test_whole_path import train

from skysense_o.data.augment import ColorJitter, color_jitter
from skysense_o.data.catalog import records_of
from skysense_o.data.classes import load_classes
from skysense_o.data.labels import BadData
from skysense_o.data.loader import training_loader
from skysense_o.data.mapper import TrainingMapper, read_image_and_labels
from skysense_o.data.relation_graph import RelationGraph, load_graph, load_graph_with_report, parse_relations
from skysense_o.data.skysa import read_index
from skysense_o.data.text_sampler import TextSampler


@pytest.fixture
def skysa(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return trees.skysa(tmp_path / "data")


def test_the_index_is_read_with_its_irregular_entries(skysa):
    counts: Counter = Counter()
    records = list(read_index(skysa / "skysa_dataset.jsonl", counts))
    assert [r["names"] for r in records] == [
        ("lake", "forest"), ("road", "car"), ("roof",), ("lake", "pond", "Forest"), ("car",),
    ]  # fmt: skip
    assert records[1]["ids"] == (0, 1, 0)
    assert counts == {
        "images": 5, "repeated names merged": 1, "images without names left out": 1,
        "paths found by their last parts": 2,
    }  # fmt: skip
    stored = np.asarray(Image.open(records[1]["sem_seg_file_name"]))
    _, ids = read_image_and_labels({**records[1], "dataset": "skysa"})
    assert ((ids == 0) == np.isin(stored, (0, 2))).all()
    assert ((ids == 255) == (stored == 255)).all()


def test_blank_names_are_ignored_pixels(skysa):
    index = skysa / "skysa_dataset.jsonl"
    entry = json.loads(index.read_text().splitlines()[0])
    entry["ann_list"][0]["category_name"] = "  "
    index.write_text(json.dumps(entry))
    (record,) = records_of("skysa_train")
    _, ids = read_image_and_labels(record)
    assert set(np.unique(ids)) == {0, 255}
    assert record["names"] == ("forest",)


def test_unusable_lines_are_an_error_or_are_skipped_and_listed(skysa, caplog):
    with open(skysa / "skysa_dataset.jsonl", "a") as file:
        file.write('{"flickr_url": "img_dir/lost.jpg", "segmentation": "ann_dir/lost.png", "ann_list": [')
        file.write('{"category_name": "road"}]}\n{"flickr_url": \n')
    with pytest.raises(FileNotFoundError, match="line 7: 'ann_dir/lost.png' is not below .*SKIP_BAD"):
        records_of("skysa_train")
    assert len(records_of("skysa_train", skip_bad=True)) == 5
    assert "2 files skipped" in caplog.text
    assert "skysa_dataset.jsonl, line 8 is not JSON" in caplog.text


def test_a_graph_is_needed_for_the_split_that_uses_it(skysa):
    assert "graph" not in records_of("skysa_train")[0]
    assert records_of("skysa_graph_train")[0]["graph"].endswith("skysa_graph.jsonl")
    (skysa / "skysa_graph.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs .*skysa_graph.jsonl: tools/build_graph.py makes one"):
        records_of("skysa_graph_train")


def test_each_defect_in_the_graph_file_is_counted():
    d = "{tuple_delimiter}"
    lines = [
        relation("Lake", "pond", 9),
        relation("lake", " forest ", 2),
        relation("lake", "forest", 3),  # this pair occurs twice: the last score counts
        # This entry has no reason, so a bracket follows the score.
        relation("lake", "road", 4, "").removesuffix(d) + ")",
        relation("lake", "mud", "high"),
        relation("lake", "mud", 11),
        relation("lake", "LAKE", 5),
        f'("entity"{d}"lake"{d}"a place"{d}1{d}x)',
        '("relationship"<|>"lake"<|>"sea"<|>8)',
        "",
    ]
    graph, odd = parse_relations(lines, "g.jsonl")
    assert graph.names == ("Lake", "pond", "forest", "road")
    assert graph.scores.tolist() == [[0, 9, 3, 4], [0] * 4, [0] * 4, [0] * 4]
    assert odd == {
        "repeated pairs (the last counts)": 1,
        "scores in quotes or brackets, corrected": 1,
        "scores that are not integers": 1,
        "scores not from 1 to 10": 1,
        "relations of a class to itself or to an empty name": 1,
        "lines that are not a relation": 1,
        "lines without {tuple_delimiter}, or with too few fields": 1,
    }


def test_a_file_with_wrong_delimiters_shows_the_expected_format(tmp_path):
    (tmp_path / "g.jsonl").write_text('("relationship"<|>"lake"<|>"sea"<|>8)\n')
    with pytest.raises(ValueError, match=r"g.jsonl holds no relation: a line must be .*\{tuple_delimiter\}"):
        load_graph(tmp_path / "g.jsonl")
    with pytest.raises(FileNotFoundError, match="no relation graph at"):
        load_graph(tmp_path / "none")
    g = tmp_path / "g.json"
    for body, says in (
        ('{"names": ["a"]}', "g.json has no 'edges'"),
        ('{"names": "a", "edges": []}', "g.json: 'names' is \"a\": it must be a list"),
        (
            '{"names": ["a", "b"], "edges": [[0, 1, 5]]}',
            "an entry of 'edges' is not .from, to, score, source.: two of 2",
        ),
        ('{"names": ["a", "b"], "edges": [[0, 2, 5, 0]]}', "an entry of 'edges' is not"),
        ('{"names": ["a", "b"], "edges": [[0, -1, 5, 0]]}', "an entry of 'edges' is not"),
        ('{"names": ["a", "b"], "edges": [[0, 1, 11, 0]]}', "an entry of 'edges' is not"),
        ('{"names": ["a", "b"], "edges": [[0, 1, 5, 3]]}', "an entry of 'edges' is not"),
        ('{"names": ["a", "b"], "edges": [[0, 1, "x", {}]]}', "an entry of 'edges' is not"),
        ('{"names": ["a", "b"], "edges": ' + "[" * 90_000, "g.json is nested too deeply"),
    ):
        g.write_text(body)
        load_graph_with_report.cache_clear()
        with pytest.raises(ValueError, match=says):
            load_graph(g)


def small_graph() -> RelationGraph:
    """Return a graph with scores a -> b 2, a -> c 9, b -> a 4, d -> b 3, d -> c 1; e has no relations."""
    edges = np.array([(0, 1, 2, 0), (0, 2, 9, 0), (1, 0, 4, 1), (3, 1, 3, 0), (3, 2, 1, 1)])
    return RelationGraph.of_edges(["a", "b", "c", "d", "e"], edges, ["people", "cosine"])


def naive_negatives(graph: RelationGraph, names: list[str], low: int, high: int) -> set[str]:
    """Naive reference: return the negatives by the published rule, one pair of names at a time."""
    pools = []
    for name in names:
        targets = {t: graph.scores[graph.index[name], i] for i, t in enumerate(graph.names)}
        if any(targets.values()):
            pools.append({t for t, score in targets.items() if low <= score <= high})
    return set.intersection(*pools) - set(names) if pools else set()


def test_negatives_follow_the_published_intersection_rule():
    rng = np.random.default_rng(0)
    names = [f"n{i}" for i in range(30)]
    scores = rng.integers(0, 11, (30, 30)).astype(np.uint8)
    np.fill_diagonal(scores, 0)
    scores[7] = 0
    graph = RelationGraph(tuple(names), scores)
    for own in (["n1"], ["n1", "n2", "n7"], ["n7"], ["n3", "n4", "n5"]):
        got = {graph.names[i] for i in graph.negatives(own, 1, 5)}
        assert got == naive_negatives(graph, own, 1, 5), own
    assert small_graph().positives(["A", "unknown"], 9, 10).tolist() == [2]


def test_a_graph_is_directed_and_survives_a_file(tmp_path):
    graph = small_graph()
    assert graph.similarity()[0, 1] == pytest.approx(0.2)
    assert graph.similarity(symmetric=True)[0, 1] == pytest.approx(0.4)
    both = graph.symmetric()
    assert (both.scores == both.scores.T).all()
    assert both.sources[both.origin[0, 1]] == "cosine"
    graph.save(tmp_path / "deep/graph.json")
    again, odd = load_graph_with_report(str(tmp_path / "deep/graph.json"))
    assert odd == {}
    assert (again.names, again.sources) == (graph.names, graph.sources)
    assert (again.scores == graph.scores).all()
    assert (again.origin == graph.origin).all()


def test_invalid_scores_are_an_error():
    with pytest.raises(ValueError, match="scores must be 1 to 10; found 0 to 0"):
        RelationGraph.of_edges(["a", "b"], np.array([(0, 1, 0, 0)]))
    with pytest.raises(ValueError, match=r"scores go up to 11: they must be 1 to 10"):
        RelationGraph(("a",), np.full((1, 1), 11, np.uint8))
    with pytest.raises(ValueError, match=r"scores are \(2, 2\) for 1 names: the shape must be"):
        RelationGraph(("a",), np.zeros((2, 2), np.uint8))


def test_similarity_becomes_a_rank_in_tenths():
    rng = np.random.default_rng(0)
    values = rng.random((21, 21))
    values[3] = np.nan
    graph = RelationGraph.from_similarity([f"n{i}" for i in range(21)], values, "cosine")
    counts = np.bincount(graph.scores.ravel(), minlength=11)[1:]
    assert counts.sum() == 20 * 20
    assert counts.max() - counts.min() <= 2
    order = np.argsort(values[~np.isnan(values) & ~np.eye(21, dtype=bool)])
    assert (np.diff(graph.scores[~np.isnan(values) & ~np.eye(21, dtype=bool)][order].astype(int)) >= 0).all()


def test_a_graph_of_the_size_of_sky_sa_is_read():
    """Sampling negatives takes milliseconds, even with Sky-SA's 1,763 names and a score for every pair of names."""
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 11, (1763, 1763)).astype(np.uint8)
    graph = RelationGraph(tuple(f"n{i}" for i in range(1763)), scores)
    start = time.perf_counter()
    for i in range(20):
        graph.negatives([f"n{i}", f"n{i + 1}"], 1, 3)
    assert (time.perf_counter() - start) / 20 < 0.05


def drawn(sampler: TextSampler, own, graph="", seed=0):
    np.random.seed(seed)
    return sampler(own, graph)


def test_the_vocabulary_is_the_image_s_classes_then_negatives(tmp_path):
    small_graph().save(tmp_path / "g.json")
    sampler = TextSampler(False, (), 0, 4, str(tmp_path / "g.json"), (1, 3, 9, 10))
    vocabulary, kept = drawn(sampler, ("a", "d"))
    assert kept is None
    assert vocabulary.classes == ("a", "d", "b"), "b is the only class with scores from 1 to 3 to both a and d"
    vocabulary, _ = drawn(sampler, ("a",))
    assert set(vocabulary.classes) == {"a", "b"}


def test_without_negatives_any_class_except_similar_ones_is_drawn(tmp_path):
    small_graph().save(tmp_path / "g.json")
    sampler = TextSampler(False, (), 0, 10, str(tmp_path / "g.json"), (5, 6, 9, 10))
    vocabulary, _ = drawn(sampler, ("a",))
    assert vocabulary.classes[0] == "a"
    assert set(vocabulary.classes) == {"a", "b", "d", "e"}, (
        "c is similar to a (score 9), so c may be present but unlabelled"
    )
    vocabulary, _ = drawn(sampler, ("unheard of",))
    assert len(vocabulary) == 6


def test_surplus_classes_are_dropped_and_their_pixels_ignored(skysa, cfg):
    cfg.INPUT.CROP_SIZE, cfg.INPUT.TEXT_BATCH = 48, 2
    mapper = TrainingMapper(cfg)
    record = next(r for r in records_of("skysa_graph_train") if len(r["names"]) == 3)
    seen = set()
    for seed in range(12):
        np.random.seed(seed)
        sample = mapper(record)
        assert len(sample["vocabulary"]) == 2
        assert set(sample["vocabulary"].classes) < set(record["names"])
        assert set(sample["sem_seg"].unique().tolist()) == {0, 1, 255}
        seen.add(sample["vocabulary"].classes)
    assert len(seen) == 3


def test_a_class_table_keeps_its_order_under_a_graph(dubai, cfg, tmp_path):
    names = [*load_classes("dubai").classes, "glacier", "volcano", "harbor"]
    scores = np.full((8, 8), 2, np.uint8)
    RelationGraph(tuple(names), scores).save(tmp_path / "g.json")
    cfg.INPUT.CROP_SIZE, cfg.INPUT.GRAPH, cfg.INPUT.TEXT_BATCH = 32, str(tmp_path / "g.json"), 7
    cfg.INPUT.SYNONYMS = False
    np.random.seed(0)
    words = TrainingMapper(cfg)(records_of("dubai_train")[0])["vocabulary"].classes
    assert words[:5] == load_classes("dubai").classes
    assert set(words[5:]) < {"glacier", "volcano", "harbor"}
    assert len(words) == 7


def test_thresholds_in_the_wrong_order_are_an_error(cfg):
    cfg.INPUT.SAMPLING_HYPER = [5, 3, 9, 10]
    with pytest.raises(ValueError, match=r"INPUT.SAMPLING_HYPER \[5, 3, 9, 10\]: lowest and highest"):
        TrainingMapper(cfg)


WORDS = """
import sys; sys.path.insert(0, {root!r})
import numpy as np, skysense_o.data
from skysense_o.data.text_sampler import TextSampler
np.random.seed(3)
print([TextSampler(True, (), 0, 5, {graph!r})(("lake", "car"))[0].classes for _ in range(4)])
"""


def test_words_do_not_depend_on_hash_order(skysa):
    graph = str(skysa / "skysa_graph.jsonl")
    np.random.seed(3)
    here = [TextSampler(True, (), 0, 5, graph)(("lake", "car"))[0].classes for _ in range(4)]
    code = WORDS.format(root=str(ROOT), graph=graph)
    environment = {"PYTHONHASHSEED": "1", "PATH": ""}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert there.stdout.strip() == str(here)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sky_sa_sample_is_a_function_of_seed_and_index(skysa, cfg, workers):
    cfg.INPUT.CROP_SIZE, cfg.INPUT.TEXT_BATCH = 32, 4
    records, mapper = records_of("skysa_graph_train"), TrainingMapper(cfg)
    whole = training_loader(records, mapper, batch=2, start=0, seed=7, workers=0)
    first = [s for batch in itertools.islice(whole, 4) for s in batch]
    later = training_loader(records, mapper, batch=2, start=4, seed=7, workers=workers)
    again = [s for batch in itertools.islice(later, 2) for s in batch]
    for a, b in zip(first[4:], again):
        assert torch.equal(a["image"], b["image"])
        assert a["vocabulary"] == b["vocabulary"]


def test_training_runs_with_classes_from_the_graph(skysa, dubai, tmp_path):
    """Training on a relation graph runs from the command line; a truncated image is skipped and logged."""
    trees.skysa(dubai.parent)
    image = dubai.parent / "skysa/img_dir/part/5.jpg"
    image.write_bytes(image.read_bytes()[:500])
    words = ("DATASETS.TRAIN", "('skysa_graph_train',)", "INPUT.TEXT_BATCH", "5", "SOLVER.MAX_ITER", "4")
    done = train(tmp_path / "run", *words, "TEST.EVAL_PERIOD", "0", "DATALOADER.SKIP_BAD", "True", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert np.isfinite(rows[-1]["total_loss"])
    log = (tmp_path / "run/log.txt").read_text()
    assert "skipped, 1 so far" in log
    assert "5.jpg is cut short or damaged" in log


def test_sets_with_open_class_names_cannot_be_evaluated(skysa, dubai, call, tmp_path):
    trees.skysa(dubai.parent)
    config = ("--config-file", ROOT / "configs/mini/finetune.yaml")
    code, _, err = call("tools/train_net.py", *config, "--eval-only", "DATASETS.TEST", "('skysa_train',)")
    assert code == 2
    assert "its names differ from image to image; it is for training" in err


BAD = [
    (lambda image, label: Image.new("L", (131, 97), 9).save(label), r"tile1_001.png holds ids \[9\]"),
    (lambda image, label: image.write_bytes(image.read_bytes()[:900]), "tile1_001.jpg is cut short or damaged"),
    (lambda image, label: Image.new("RGB", (131, 97)).save(label), "tile1_001.png is a RGB image"),
    (lambda image, label: image.write_text("hello"), "tile1_001.jpg is not an image that can be read"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD)
def test_bad_files_are_an_error_or_are_skipped_and_listed(dubai, cfg, spoil, says):
    spoil(dubai / "images/tile1_001.jpg", dubai / "labels/tile1_001.png")
    cfg.INPUT.CROP_SIZE = 32
    records, mapper = records_of("dubai_train"), TrainingMapper(cfg)
    with pytest.raises(BadData, match=says + ".*SKIP_BAD"):
        mapper(records[0])
    loader = training_loader(records, mapper, batch=2, start=0, seed=0, workers=0, skip_bad=True)
    samples = [s for batch in itertools.islice(loader, 4) for s in batch]
    assert {Path(s["file_name"]).stem for s in samples} == {"tile1_002", "tile2_001", "tile8_003"}
    assert all("skipped" not in s for s in samples)
    (message,) = loader.skipped
    assert "tile1_001" in message


def test_images_with_a_missing_label_are_skipped(dubai, caplog):
    (dubai / "labels/tile1_001.png").unlink()
    with pytest.raises(FileNotFoundError, match="tile1_001.jpg has no label image .*SKIP_BAD"):
        records_of("dubai_train")
    assert len(records_of("dubai_train", skip_bad=True)) == 3
    assert "1 files skipped" in caplog.text


def test_a_set_of_only_bad_files_is_an_error(dubai, cfg):
    for path in (dubai / "labels").glob("tile[128]*"):
        path.write_bytes(b"")
    loader = training_loader(
        records_of("dubai_train"), TrainingMapper(cfg), batch=1, start=0, seed=0, workers=0, skip_bad=True
    )
    with pytest.raises(BadData, match="50 records in a row cannot be used"):
        next(iter(loader))


def test_colour_jitter_draws_like_detectron2(cfg):
    """With the same random numbers, our colour jitter gives the same image as Detectron2's, up to rounding."""
    import random

    from detectron2.projects.point_rend import ColorAugSSDTransform

    rng = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((64, 64)))
    ours = color_jitter(1.0)
    assert isinstance(ours, ColorJitter)
    theirs = ColorAugSSDTransform("RGB", ours.brightness_delta, 0.5, 1.5, 0.5, 1.5, ours.hue_delta)
    for seed in range(40):
        random.seed(seed)
        one = ours.apply_image(image).astype(int)
        state = random.getstate()
        random.seed(seed)
        two = theirs.apply_image(image).astype(int)
        assert state == random.getstate()
        assert np.abs(one - two).mean() < 1.0, seed


def test_a_record_has_no_vocabulary(dubai):
    assert set(records_of("dubai_train")[0]) == {"file_name", "sem_seg_file_name", "dataset"}
