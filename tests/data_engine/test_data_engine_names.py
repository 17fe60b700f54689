"""Tests of naming regions in the data engine: namers, synonyms, and the relation graph."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import draw_scene
from safetensors.torch import save_file

pytest.importorskip("pyarrow", reason='the data engine needs pip install -e ".[engine]"')
pytest.importorskip("faiss", reason='the data engine needs pip install -e ".[engine]"')

from review_work import Said

from skysense_o.data.relation_graph import load_graph
from skysense_o.data_engine.name import name_regions
from skysense_o.data_engine.namers import TowerNamer, VocabularyNamer, region_shares
from skysense_o.data_engine.work_folder import read_json, write_json
from skysense_o.geometry import prepare
from skysense_o.inference.classify import load_tower
from skysense_o.vocabulary import Vocabulary


def test_names_by_features_and_by_masks_equal_a_naive_computation(mini):
    image, labels = draw_scene(np.random.default_rng(0), 128, 160)
    regions = np.where(labels == 255, 0, labels + 1).astype(np.uint16)
    words = Vocabulary.parse("water|sea,land,road,building,vegetation", "sky")
    masks = np.stack([regions == k for k in range(1, 6)])
    seen = mini.set_image(image)
    plain = mini(seen, words, probabilities=True).probabilities
    for k, candidates in enumerate(VocabularyNamer(mini, words, "masks")(image, regions)):
        means = {n: float(plain[c][masks[k]].mean()) for c, n in enumerate(words.classes) if n != "sky"}
        assert dict(candidates) == pytest.approx(means, abs=0.1), (
            "the namer averages masks at a quarter of the image's size, hence the tolerance"
        )
        assert [v for _, v in candidates] == sorted((v for _, v in candidates), reverse=True)
    for candidates, cosines in zip(
        VocabularyNamer(mini, words, "features")(image, regions), seen.name(masks, words, 6)
    ):
        assert [n for n, _ in candidates] == [n for n, _ in cosines if n != "sky"]
        odds = {n: np.exp((value - cosines[0][1]) / 0.05) for n, value in cosines}
        for n, value in candidates:
            assert value == pytest.approx(odds[n] / sum(odds.values()), abs=0.01)
    with pytest.raises(ValueError, match="unknown way of naming 'ear': choose features or masks"):
        VocabularyNamer(mini, words, "ear")


def test_a_tower_scores_each_class_by_its_best_phrase(mini, tmp_path):
    tower, templates = load_tower("mini", "cpu")
    assert templates == mini.model.templates
    image, labels = draw_scene(np.random.default_rng(0), 128, 160)
    regions = np.where(labels == 255, 0, labels + 1).astype(np.uint16)
    words = Vocabulary.parse("water|sea,land,road,building,vegetation", "sky")
    namer = TowerNamer(tower, words, templates)
    x, _ = prepare([torch.from_numpy(image).permute(2, 0, 1)], tower)
    with torch.inference_mode():
        dense = tower.encode_image(x).dense[0].flatten(1)
    for k, candidates in enumerate(namer(image, regions), 1):
        vector = (dense * region_shares(regions, (128, 160), (8, 10))[k - 1]).sum(1)
        cosines = {
            name: max(
                float(torch.cosine_similarity(vector, tower.encode_text([t.format(p) for t in templates]).mean(0), 0))
                for p in phrases
            )
            for name, phrases in zip(words.classes, words.phrases)
        }
        odds = {name: np.exp(value / 0.05) for name, value in cosines.items()}
        assert dict(candidates) == pytest.approx(
            {name: odds[name] / sum(odds.values()) for name in odds if name != "sky"}, abs=1e-3
        )
        assert [v for _, v in candidates] == sorted((v for _, v in candidates), reverse=True)
    assert namer(image, np.zeros_like(regions)) == []
    save_file({"tower.a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="bare.safetensors does not hold its config: give a YAML"):
        load_tower(tmp_path / "bare.safetensors", "cpu")


def test_region_shares_equal_a_naive_count():
    regions = np.zeros((6, 8), np.uint16)
    regions[:3, :4], regions[3:, 4:] = 1, 2
    # Each cell has 4 x 4 pixels, and the last two rows of cells are padding.
    got = region_shares(regions, (8, 8), (2, 2)).numpy()
    assert got == pytest.approx(np.array([[1, 0, 0, 0], [0, 4 / 12, 0, 8 / 12]]))


def test_synonyms_are_merged_and_the_namers_own_names_are_kept(halves, mini):
    tiles = [row["tile"] for row in halves.kept()]
    for i, tile in enumerate(tiles):
        names = ("building", "buildings" if i else "forest")
        entries = [
            {"region": k, "name": n, "confidence": 0.9, "candidates": [[n, 0.9]]} for k, n in enumerate(names, 1)
        ]
        write_json(halves / f"names/{tile}.json", entries)
    assert name_regions(halves, Said(), mini.model, merge=0.85) == []
    assert read_json(halves / "synonyms.json") == {"buildings": "building"}
    entries = read_json(halves / f"names/{tiles[1]}.json")
    assert [e["name"] for e in entries] == ["building", "building"]
    assert entries[1]["candidates"] == [["buildings", 0.9]]
    assert read_json(halves / f"names/{tiles[0]}.json")[1]["name"] == "forest"


def test_a_graph_prevents_merging_names_that_look_different(mini, tmp_path):
    from skysense_o.data.relation_graph import RelationGraph
    from skysense_o.data_engine.synonyms import synonyms

    counts = {"building": 3, "buildings": 2}
    apart = RelationGraph.of_edges(["building", "buildings"], np.array([[0, 1, 3, 0]]))
    assert synonyms(mini.model, counts, 0.8) == {"buildings": "building"}
    assert synonyms(mini.model, counts, 0.8, apart) == {}


def test_classes_that_reviewers_rename_into_each_other_score_highest(halves, mini):
    from skysense_o.data_engine.build_graph import build_relation_graph

    name_regions(halves, Said("road", "tree"), mini.model)
    tile = halves.kept()[0]["tile"]
    write_json(halves / f"names/{tile}.json", [{"region": 1, "name": "lake", "confidence": 0.9, "candidates": []}])
    assert build_relation_graph(halves, mini).scores.max() <= 10
    path, lines = halves / "review/decisions.jsonl", []
    path.parent.mkdir()
    rename = {"tile": tile, "region": 1, "action": "rename", "name": "tree"}
    for reviewer, action in (("ann", "rename"), ("bob", "rename"), ("bob", "undo")):
        lines.append(json.dumps({**rename, "reviewer": reviewer, "action": action}))
    path.write_text("\n".join(lines))
    graph = build_relation_graph(halves, mini)
    i, j = graph.index["lake"], graph.index["tree"]
    assert "confused by reviewers" not in graph.sources[graph.origin[i, j]], (
        "only one reviewer renamed this pair, because Bob undid his decision"
    )
    path.write_text("\n".join(lines[:2]) + '\n{"torn')
    graph = build_relation_graph(halves, mini)
    assert graph.scores[i, j] == graph.scores[j, i] == 10
    assert graph.sources[graph.origin[i, j]] == "confused by reviewers"
    again = load_graph(halves / "graph/skysa_graph.jsonl")
    order = again.indices(graph.names)
    assert (again.scores[np.ix_(order, order)] == graph.scores).all()
    assert (load_graph(halves / "graph/graph.json").scores == graph.scores).all()


def test_a_graph_needs_two_classes(halves, mini):
    from skysense_o.data_engine.build_graph import build_relation_graph

    name_regions(halves, Said("road"), mini.model)
    with pytest.raises(ValueError, match="a graph needs at least two classes, but .* has 1"):
        build_relation_graph(halves, mini)


def test_similarity_measures_against_values_computed_by_hand():
    from skysense_o.data.similarity import combined, confusions, cooccurrence, ranks

    names = ["a", "b", "c"]
    together = cooccurrence([["a", "b"], ["a", "b", "x"], ["a", "c"]], names)
    assert together[0, 1] == pytest.approx(2 / 3)
    assert together[1, 2] == 0
    assert ranks(np.array([[9, 1, 2], [1, 9, 3], [2, 3, 9.0]]))[0].tolist()[1:] == pytest.approx([0.25, 7 / 12])
    assert confusions([("b", "a"), ("a", "b"), ("a", "a"), ("", "a")]) == {("a", "b"): 2}
    graph = combined(names, {"cooccurrence": together}, {("b", "c"): 2})
    assert graph.scores[0, 1] > graph.scores[0, 2]
    assert graph.scores[1, 2] == 10
