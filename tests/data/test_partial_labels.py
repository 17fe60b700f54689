"""Tests of partial labels: what a label implies about other classes, and which words a training sample contains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from skysense_o.data import concepts as concepts_module
from skysense_o.data.catalog import spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.concepts import load_concepts
from skysense_o.data.partial_labels import WordChooser, class_says, object_says, object_values, outside_says, shapes_say
from skysense_o.data.relation_graph import RelationGraph
from skysense_o.sample import IGNORE, MAYBE, NO, UNKNOWN, YES

WORDS = {YES: "yes", NO: "no", UNKNOWN: "unknown", MAYBE: "one of"}


def says_of(dataset: str, name: str, word: str) -> int:
    says, _ = class_says(dataset)
    return int(says[load_classes(spec_of(dataset).class_table_name).classes.index(name), load_concepts().index(word)])


@pytest.mark.parametrize(
    ("dataset", "name", "word", "expected"),
    [
        ("dubai", "vegetation", "vegetation", YES),
        ("dubai", "vegetation", "tree", UNKNOWN),
        ("dubai", "vegetation", "building", NO),
        ("dubai", "water", "sea", UNKNOWN),
        ("dubai", "water", "airplane", NO),
        ("dubai", "road", "paved area", YES),
        ("dubai", "road", "car", UNKNOWN),
        ("dubai", "land", "road", NO),
        ("czech_landcover", "paved area", "road", UNKNOWN),
        ("czech_landcover", "vegetation", "crop field", UNKNOWN),
        ("epfl_roads", "not road", "road", NO),
        ("epfl_roads", "not road", "freeway", NO),
        ("epfl_roads", "not road", "tree", MAYBE),
        ("epfl_roads", "not road", "paved area", MAYBE),
        ("epfl_roads", "not road", "airplane", UNKNOWN),
        ("oam_buildings", "not building", "house", NO),
        ("oam_buildings", "building", "residential area", UNKNOWN),
    ],
)
def test_a_class_answers_yes_no_or_unknown_for_a_word(dataset, name, word, expected):
    assert WORDS[says_of(dataset, name, word)] == WORDS[expected]


def test_a_box_says_little_about_the_pixels_around_it():
    concepts, table = load_concepts(), load_classes("vehicles")
    says, own = object_says("simd")
    count, car, jet = len(table), table.folders.index("car"), table.folders.index("airliner")
    at = concepts.index
    assert len(says) == 2 * count + 1
    assert says[car, at("vehicle")] == says[jet, at("airplane")] == says[jet, at("aircraft")] == YES
    assert says[car, at("airplane")] == says[jet, at("car")] == NO
    assert says[count + car, at("car")] == NO
    assert says[count + car, at("building")] == says[count + car, at("vehicle")] == UNKNOWN
    assert says[count + jet, at("helicopter")] == NO, "a box of an aeroplane contains no other kind of aircraft"
    assert (says[2 * count] == UNKNOWN).all()
    assert at("car") in own


@pytest.mark.parametrize(
    ("outlined", "word", "expected"),
    [
        ("tree", "crop field", NO),
        ("grass", "crop field", NO),
        ("crop field", "tree", NO),
        ("crop field", "bare land", UNKNOWN),  # a ploughed field is both
        ("bare land", "crop field", NO),  # but bare soil that was not outlined as a field is none
        ("paved area", "road", NO),
        ("road", "paved area", YES),
        ("runway", "road", NO),
        ("chaparral", "tree", UNKNOWN),
        ("tree", "forest", UNKNOWN),
        ("bare land", "beach", UNKNOWN),  # sand is both
        ("bare land", "road", NO),
    ],
)
def test_an_outlined_pixel_is_of_one_class(outlined, word, expected):
    says, _ = object_says("rsicd_land")
    label = load_classes("land_shapes").classes.index(outlined)
    assert WORDS[says[label, load_concepts().index(word)]] == WORDS[expected]


def test_a_box_of_a_van_does_not_exclude_a_car():
    says, _ = object_says("simd")
    assert says[load_classes("vehicles").folders.index("van"), load_concepts().index("car")] == UNKNOWN


@pytest.mark.parametrize("scene", ["rsicd/forest", "ucmerced/chaparral", "rsicd/meadow", "rsicd/desert"])
def test_a_whole_landscape_is_no_crop_field(scene):
    concepts = load_concepts()
    assert concepts.scene_says(concepts.scenes[scene])[concepts.index("crop field")] == NO


def test_a_forest_is_no_chaparral_but_single_trees_may_stand_in_it():
    concepts = load_concepts()
    assert concepts.says[concepts.index("forest"), concepts.index("chaparral")] == NO
    assert concepts.says[concepts.index("tree"), concepts.index("chaparral")] == UNKNOWN


def test_outside_boxes_only_completely_labelled_classes_are_denied():
    concepts, table = load_concepts(), load_classes("vehicles")
    jet = [0, 0, 9, 9, table.folders.index("airliner")]
    few, many = ({"dataset": "simd", "boxes": [jet] * n} for n in (6, 7))
    assert outside_says(few)[concepts.index("airliner")] == NO
    assert outside_says(few)[concepts.index("car")] == UNKNOWN, "not every car has a box, so a car elsewhere is unknown"
    assert (outside_says(many) == UNKNOWN).all()
    ships = {"dataset": "harbor_ships", "boxes": []}
    assert outside_says(ships)[concepts.index("ship")] == NO
    assert outside_says(ships)[concepts.index("boat")] == UNKNOWN


def test_outside_of_all_shapes_of_a_class_it_is_denied():
    concepts, at = load_concepts(), load_concepts().index
    classes = load_classes("ucmerced_shapes").classes

    def outside(kind: str, *complete: str) -> np.ndarray:
        ids = [classes.index(name) for name in complete]
        return outside_says({"dataset": "ucmerced_shapes", "shapes": [], "complete": ids, "kind": f"ucmerced/{kind}"})

    river = outside("river", "river")
    assert river[at("river")] == NO
    assert river[at("water")] == NO, "an image of a river has no water outside the river"
    assert river[at("tree")] == UNKNOWN
    assert river[at("airplane")] == NO, "a scene of a river contains no aeroplane"
    assert outside("river")[at("river")] == outside("river")[at("water")] == UNKNOWN
    assert outside("airplane", "airplane")[at("aircraft")] == NO
    assert outside("runway", "runway")[at("paved area")] == UNKNOWN, (
        "there may be a road, which is a paved area, outside the runway"
    )
    beach = outside("beach", "beach", "sea")
    assert (beach[at("sea")], beach[at("water")], beach[at("bare land")]) == (NO, NO, UNKNOWN)
    assert len(beach) == len(concepts)


def test_a_scene_class_makes_an_outlined_class_narrower():
    at, classes = load_concepts().index, load_classes("land_shapes").classes

    def water(kind: str | None, name: str = "water") -> np.ndarray:
        record = {"dataset": "ucmerced_land", "shapes": [], "complete": [], "kind": kind}
        return shapes_say(record)[classes.index(name)]

    assert water("ucmerced/river")[at("river")] == water("ucmerced/beach")[at("sea")] == YES
    assert water("scenes12/lake")[at("lake")] == UNKNOWN, (
        "water in a lake scene may be a pond, so it is not surely a lake"
    )
    assert water("ucmerced/harbor")[at("sea")] == water(None)[at("river")] == UNKNOWN
    assert water("ucmerced/forest", "tree")[at("forest")] == YES
    assert water("ucmerced/dense residential", "building")[at("house")] == YES
    assert water("ucmerced/overpass", "road")[at("overpass")] == UNKNOWN, (
        "an image of an overpass also has roads that are no overpass"
    )
    assert water("rsicd/church", "building")[at("church")] == UNKNOWN


def test_a_scene_class_excludes_what_it_does_not_list():
    classes, at = load_classes("land_shapes").classes, load_concepts().index

    def says(kind: str | None, name: str, word: str) -> int:
        record = {"dataset": "ucmerced_land", "shapes": [], "complete": [], "kind": kind}
        return shapes_say(record)[classes.index(name), at(word)]

    assert says("ucmerced/dense residential", "tree", "forest") == NO, "a forest is a landscape, and not listed"
    assert says("ucmerced/sparse residential", "tree", "forest") == UNKNOWN, "it is listed here"
    assert says(None, "tree", "forest") == UNKNOWN
    assert says("ucmerced/harbor", "water", "river") == NO, "the sea is listed, so other kinds of water are absent"
    assert says("ucmerced/harbor", "water", "sea") == UNKNOWN
    assert says("rsicd/center", "water", "river") == UNKNOWN, "water without its kinds may be of any kind"
    assert says("ucmerced/baseball diamond", "bare land", "golf bunker") == NO, "absent from such images"
    assert says("ucmerced/golf course", "bare land", "golf bunker") == UNKNOWN
    assert says("ucmerced/harbor", "water", "water") == YES
    record = {"dataset": "ucmerced_land", "shapes": [], "complete": [], "kind": "ucmerced/dense residential"}
    assert shapes_say(record, [at("forest")])[classes.index("tree"), at("forest")] == UNKNOWN, "its captions name it"


def test_a_scene_class_says_what_must_may_and_cannot_be_there():
    concepts, at = load_concepts(), load_concepts().index
    farm = concepts.scene_says(concepts.scenes["rsicd/farmland"])
    assert farm[at("crop field")] == YES
    assert farm[at("road")] == farm[at("tree")] == UNKNOWN
    assert farm[at("airplane")] == farm[at("sea")] == farm[at("airport")] == NO
    harbor = concepts.scene_says(concepts.scenes["ucmerced/harbor"])
    assert harbor[at("harbor")] == YES, "the class of a place, such as a harbor, holds for the whole image"
    assert (harbor[at("boat")], harbor[at("water")]) == (15, 8), (
        "at least this percentage of the image must be boats or water"
    )
    assert harbor[at("vessel")] == 15, "a boat is a vessel, so both have the same percentage"
    said = concepts.scene_says(concepts.scenes["rsicd/park"], {at("airplane"): 3})
    assert said[at("airplane")] == 3, "a class that the caption mentions has the percentage passed for it"


def test_every_scene_of_the_training_sets_is_described():
    for table in ("ucmerced", "rsicd"):
        for name in load_classes(table).classes:
            assert f"{table}/{name}" in load_concepts().scenes


def test_words_belong_to_one_concept():
    concepts = load_concepts()
    every = [word for words in concepts.words for word in words]
    assert len(every) == len(set(every))
    assert "river" in concepts.words[concepts.index("river")]
    assert not set(every) & {kind for kinds in concepts.kinds for kind in kinds}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Return a function that writes a concept table and loads it."""

    def load(**changes) -> object:
        body = {"concepts": {"tree": {}, "forest": {"is": ["tree"]}}, "nots": {}, "scenes": {}, **changes}
        (tmp_path / "concepts.json").write_text(json.dumps(body))
        load_concepts.cache_clear()
        return load_concepts()

    monkeypatch.setattr(concepts_module, "CONCEPTS_FILE", tmp_path / "concepts.json")
    yield load
    load_concepts.cache_clear()


def test_mistakes_in_the_concept_table_are_named(table):
    assert table().above.tolist() == [[True, False], [True, True]]
    with pytest.raises(KeyError, match="'moon' is not a concept of concepts.json; choose one of tree, forest"):
        table().index("moon")
    with pytest.raises(ValueError, match="forest names 'wood', which is not a concept"):
        table(concepts={"forest": {"is": ["wood"]}})
    with pytest.raises(ValueError, match="tree has dubai/woods under 'of', which is not a class"):
        table(concepts={"tree": {"of": ["dubai/woods"]}})
    with pytest.raises(ValueError, match="rsicd/forest names 'fir', which is not a concept"):
        table(scenes={"rsicd/forest": {"may": ["fir"]}})
    with pytest.raises(KeyError, match="no concept of concepts.json has dubai/water under 'of': add it"):
        table().of_class("dubai", 0)


def chosen_of(dataset: str, chooser: WordChooser, labels: np.ndarray, seed: int = 0):
    np.random.seed(seed)
    says, own = class_says(dataset)
    return chooser(labels, says, own)[:2]


def test_the_vocabulary_is_the_set_s_classes_then_denied_ones():
    labels = np.full((8, 8), 4, np.uint8)  # label 4 is vegetation
    vocabulary, says = chosen_of("dubai", WordChooser(synonyms=False, count=9, hypernyms=0.0), labels)
    assert set(load_classes("dubai").classes) - {"land"} < set(vocabulary.classes)
    assert len(vocabulary) == says.shape[1] == 9
    further = [
        c for c, name in enumerate(vocabulary.classes) if name not in (*load_classes("dubai").classes, "bare land")
    ]
    assert (says[4, further] == NO).all(), (
        "a further word must be one that the label denies, never one that may be present"
    )


def test_hypernyms_are_drawn_with_the_configured_probability():
    labels = np.full((8, 8), 2, np.uint8)  # label 2 is road, which is a paved area
    for share in (0.0, 1.0):
        vocabulary, _ = chosen_of("dubai", WordChooser(False, 9, share), labels)
        assert ("paved area" in vocabulary.classes) == bool(share)


def test_a_denied_class_may_appear_as_one_of_its_hyponyms_only():
    labels, concepts = np.full((8, 8), 3, np.uint8), load_concepts()  # label 3 is building
    kinds = {kind for some in concepts.kinds for kind in some}
    found = set()
    for seed in range(40):
        vocabulary, says = chosen_of("dubai", WordChooser(True, 14, 0.0), labels, seed)
        called = [c for c, word in enumerate(vocabulary.classes) if word in kinds]
        assert (says[3, called] == NO).all()
        found |= {vocabulary.classes[c] for c in called}
    assert found


def test_the_drawn_vocabulary_is_a_function_of_the_seed():
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 5
    chooser = WordChooser(True, 14, 0.3)
    one, again, other = (chosen_of("dubai", chooser, labels, seed)[0].classes for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_a_graph_chooses_the_negatives(tmp_path):
    """Negatives that do not look like a building come first in its images, and those that look like it never come."""
    concepts, path = load_concepts(), tmp_path / "graph.json"
    says, indices = class_says("dubai")
    others = [name for k, name in enumerate(concepts.names) if k not in indices]
    far, near = others[:12], others[12:24]
    names = ("building", *far, *near)
    scores = np.zeros((len(names),) * 2, np.uint8)
    scores[0, 1:13], scores[0, 13:] = 2, 10
    RelationGraph(names, scores).save(path)
    labels = np.full((8, 8), 3, np.uint8)  # label 3 is building
    denied = [name for name in far if says[3, concepts.index(name)] == NO]
    assert 4 < len(denied) < 13
    for count in (8, 5 + len(denied) + 3):
        np.random.seed(0)
        vocabulary, _, alike = WordChooser(False, count, 0.0, str(path))(labels, says, indices)
        drawn = [name for name in vocabulary.classes if concepts.index(name) not in indices]
        assert len(vocabulary) == count
        assert len(set(drawn) & set(denied)) == min(len(denied), len(drawn))
        assert not set(drawn) & set(near)
        building, one = (vocabulary.classes.index(name) for name in ("building", drawn[0]))
        assert alike[building, one] == np.float32(0.2)
        assert alike[building, building] == 1
    with pytest.raises(ValueError, match="INPUT.SAMPLING_HYPER"):
        WordChooser(False, 5, 0.0, str(path), (3, 1, 9, 10))


def test_an_unlabelled_crop_still_has_a_vocabulary():
    says = np.full((2, len(load_concepts())), UNKNOWN, np.int8)
    vocabulary, table, _ = WordChooser(False, 5, 0.0)(np.full((4, 4), IGNORE, np.uint8), says, np.zeros(0, int))
    assert len(vocabulary) == 1
    assert table.shape == (2, 1)


def test_prompts_are_drawn_only_for_classes_and_objects():
    road = object_values({"dataset": "epfl_roads", "sem_seg_file_name": "x"})
    assert np.flatnonzero(road).tolist() == [1], "label 0 means 'not road', which is no object to prompt for"
    boxed = object_values({"dataset": "simd", "boxes": []})
    assert np.flatnonzero(boxed).tolist() == list(range(len(load_classes("vehicles"))))
    assert not object_values({"dataset": "urban_trees", "points": []}).any()
