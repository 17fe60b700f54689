"""Tests of the commands that show data, build relation graphs and measure data loading."""

from __future__ import annotations

import json

import numpy as np
import published_trees as trees
import pytest
from conftest import ROOT, load_script
from PIL import Image

from skysense_o.cli.request import vocabulary_of
from skysense_o.data.classes import load_classes
from skysense_o.data.relation_graph import load_graph

GRAPH = "tools/build_graph.py"


def test_the_contact_sheet_shows_the_mapper_s_samples(dubai, call, tmp_path):
    sheet = tmp_path / "out/sheet.png"
    code, said, err = call(
        "tools/visualize_data.py", "dubai_train", "--output", sheet, "--count", "3", "--opts", "INPUT.CROP_SIZE", "160"
    )
    assert code == 0, err
    assert str(sheet) in said
    image = np.asarray(Image.open(sheet))
    assert image.shape[1] == 2 * (320 + 8)
    assert image.std() > 20
    code, _, err = call("tools/visualize_data.py", "dubai_train", "--opts", "INPUT.CROPSIZE", "1")
    assert code == 2
    assert "Non-existent key" in err
    trees.scenes(dubai.parent, "eurosat")
    assert "has no label images" in call("tools/visualize_data.py", "eurosat_all")[2]


def test_a_graph_from_names_records_its_source(call, tmp_path):
    path = tmp_path / "g.json"
    code, said, err = call(GRAPH, "--by", "text", "--classes", "lake,pond,car,truck,forest", "--output", path)
    assert code == 0, err
    graph = load_graph(path)
    assert graph.scores[graph.index["lake"], graph.index["pond"]] == 10
    assert graph.scores[graph.index["lake"], graph.index["car"]] < 6
    assert graph.sources == ("cosine of names, weights mini",)
    assert "5 classes, 20 relations" in said


def test_a_graph_from_images_relates_classes_that_look_alike(call, dubai, tmp_path):
    path = tmp_path / "g.json"
    code, said, err = call(GRAPH, "--by", "images", "--dataset", "dubai_train", "--output", path)
    assert code == 0, err
    graph = load_graph(path)
    assert graph.names == load_classes("dubai").classes
    assert (graph.scores == graph.scores.T).all()
    assert sorted(set(graph.scores.ravel().tolist()))[0] == 0
    assert "5 classes, 20 relations" in said


def test_a_graph_is_made_from_a_file_of_scores(call, tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("# people\nlake,pond,9\nlake,road,2\n")
    assert call(GRAPH, "--by", "scores", "--scores", table, "--output", tmp_path / "g.json")[0] == 0
    assert load_graph(tmp_path / "g.json").scores.tolist() == [[0, 9, 2], [0, 0, 0], [0, 0, 0]]
    table.write_text("lake,pond,high\n")
    code, _, err = call(GRAPH, "--by", "scores", "--scores", table, "--output", tmp_path / "h.json")
    assert code == 2
    assert "line 1: 'lake,pond,high' is not from,to,score" in err
    assert "no scores file at" in call(GRAPH, "--by", "scores", "--output", tmp_path / "h.json")[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--by", "text"), "give --dataset, or --classes"),
        (("--by", "text", "--dataset", "skysa"), "has no class table"),
        (("--by", "images", "--dataset", "mars"), "unknown data set 'mars'"),
    ],
)
def test_mistakes_in_a_graph_command_end_in_one_line(call, tmp_path, words, says):
    code, _, err = call(GRAPH, *words, "--output", tmp_path / "g.json")
    assert code == 2
    assert says in err
    assert not (tmp_path / "g.json").exists()


def test_the_benchmark_runs_on_random_images(call, tmp_path):
    path = tmp_path / "n.json"
    words = ("--seconds", "0.2", "--workers", "0", "--crop", "64", "--json", path)
    code, said, err = call("tools/benchmark.py", "data", *words)
    assert code == 0, err
    numbers = json.loads(path.read_text())
    assert 0 < numbers["decode_ms"] < numbers["sample_ms"]
    assert numbers["samples_a_second"]["0"] > 1
    assert "augmentation takes" in said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_of_classes_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    """Regression: the byte order mark used to become part of the first class, so "\ufeffbuilding" was segmented."""
    parser = load_script("demo/demo.py").parser()
    (tmp_path / "words.txt").write_bytes("building\r\n\r\nroad\r\n".encode(encoding))
    words = ["--input", "a", "--output", "b", "--classes-file", str(tmp_path / "words.txt")]
    vocabulary, _ = vocabulary_of(parser.parse_args(words))
    assert vocabulary.classes == ("building", "road")


def test_open_world_classes_are_found(dubai, monkeypatch):
    parser = load_script("demo/demo.py").parser()
    vocabulary, colors = vocabulary_of(parser.parse_args(["--input", "a", "--output", "b", "--open-world"]))
    assert len(vocabulary) == len(colors) == len(load_classes("open_world"))
    trees.skysa(dubai.parent)
    vocabulary, colors = vocabulary_of(parser.parse_args(["--input", "a", "--output", "b", "--open-world"]))
    assert set(vocabulary.classes) == {"lake", "pond", "forest", "road", "car", "roof"}
    assert colors is None


@pytest.mark.slow
def test_open_world_runs_on_the_shipped_image(call, tmp_path):
    words = ("--open-world", "--output", tmp_path, "--save", "json")
    code, said, err = call("demo/demo.py", "--input", ROOT / "demo/yellowstone_0.4m.jpg", *words)
    assert code == 0, err
    assert len(said.splitlines()) < 300, "the table must list only the classes that were found"
