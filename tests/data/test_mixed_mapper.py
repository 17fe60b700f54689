"""Tests of weak labels turned into masks, of the mapper that reads every kind of label, and of mixed data sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import weak_trees as trees

from skysense_o.config import default_config
from skysense_o.data import weak_records
from skysense_o.data.catalog import records_of
from skysense_o.data.classes import load_classes
from skysense_o.data.concepts import load_concepts
from skysense_o.data.labels import BadData
from skysense_o.data.mixed_mapper import MixedMapper, object_square, said_of
from skysense_o.data.mixture import MixedSamples, check_weights
from skysense_o.data.partial_labels import CANDIDATES, COMMON
from skysense_o.data.relation_graph import load_graph
from skysense_o.data.weak.box_masks import LEAST, box_labels, ellipse_mask, grabcut_mask
from skysense_o.data.weak.mosaic import ragged_cells, random_part
from skysense_o.data.weak.points import point_labels
from skysense_o.data.weak.shapes import shape_boxes, shape_labels
from skysense_o.sample import IGNORE, MAYBE, NO, UNKNOWN, YES

SETS = ("epfl_roads_train", "simd_train", "urban_trees_train", "rsicd_scenes_train")


@pytest.fixture
def data(tmp_path, monkeypatch, call):
    """Make one tiny data set for each kind of label, and masks for the data sets with boxes."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for make in (trees.roads, trees.vehicles, trees.trees, trees.rsicd):
        make(tmp_path)
    code, said, err = call("tools/box_masks.py", "simd_train", tmp_path / "masks")
    assert code == 0, err
    assert "simd_train: 2 label images made" in said
    assert "simd_train: 0 label images made" in call("tools/box_masks.py", "simd_train", tmp_path / "masks")[1]
    return tmp_path


def mapper_of(data, **changes) -> MixedMapper:
    cfg = default_config()
    cfg.INPUT.MAPPER, cfg.INPUT.CROP_SIZE, cfg.INPUT.BOX_MASKS = "mixed", 48, str(data / "masks")
    cfg.DATASETS.TRAIN = SETS
    for key, value in changes.items():
        cfg.INPUT[key] = value
    cfg.MODEL.LOSS.CAPTIONS = 1.0
    return MixedMapper(cfg)


def grabbed(color=(230, 225, 40)):
    image = np.full((60, 60, 3), (60, 70, 60), np.uint8)
    image[20:40, 15:45] = color
    return image


def test_grabcut_finds_a_bright_object_in_its_box():
    mask = grabcut_mask(grabbed(), (12, 16, 48, 44))
    truth = np.zeros((28, 36), bool)
    truth[4:24, 3:33] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8


def test_a_mask_that_fills_nearly_nothing_or_all_is_rejected():
    assert grabcut_mask(np.full((60, 60, 3), 90, np.uint8), (12, 16, 48, 44)) is None
    speck = np.full((90, 90, 3), (60, 70, 60), np.uint8)
    speck[44:47, 44:47] = (230, 225, 40)
    found = grabcut_mask(speck, (20, 20, 70, 70))
    assert found is None or found.mean() >= LEAST


def test_an_ellipse_touches_its_box():
    mask = ellipse_mask(np.zeros((9, 9, 3), np.uint8), (1, 1, 8, 6))
    assert mask.shape == (5, 7)
    assert mask[2].all()
    assert mask[:, 3].all()
    assert not mask[0, 0]
    large = ellipse_mask(np.zeros((99, 99, 3), np.uint8), (5, 5, 95, 65))
    assert large.mean() == pytest.approx(np.pi / 4, abs=0.01)


def test_a_label_image_of_boxes_has_the_classes_ids():
    """The label is c in a mask of class c, and 3 + c in the rest of its box and in a rim around the box (of 3 classes).

    Pixels outside all boxes have label 6. A box whose mask was rejected has label 255.
    """

    def left_half(image, box):
        if box[0] >= 40:
            return None
        mask = np.zeros((box[3] - box[1], box[2] - box[0]), bool)
        mask[:, : mask.shape[1] // 2] = True
        return mask

    labels = box_labels(np.zeros((64, 64, 3), np.uint8), [[10, 10, 20, 20, 1], [44, 44, 54, 54, 0]], 3, left_half)
    assert (labels[10:20, 10:15] == 1).all()
    assert (labels[10:20, 15:20] == 3 + 1).all()
    assert labels[9, 15] == labels[21, 15] == 3 + 1, "the rim around a box must have the label of the box"
    assert (labels[44:54, 44:54] == IGNORE).all()
    assert labels[43, 50] == 3 + 0
    assert labels[0, 0] == labels[30, 30] == 6


def test_a_small_box_inside_a_large_one_is_kept():
    def full(image, box):
        return np.ones((box[3] - box[1], box[2] - box[0]), bool)

    labels = box_labels(np.zeros((32, 32, 3), np.uint8), [[12, 12, 16, 16, 1], [4, 4, 24, 24, 0]], 2, full)
    assert (labels[12:16, 12:16] == 1).all()
    assert (labels[5:11, 5:23] == 0).all()


def test_boxes_are_clipped_to_the_image():
    labels = box_labels(np.zeros((16, 16, 3), np.uint8), [[-5, -5, 6, 6, 0], [20, 20, 30, 30, 0]], 1, ellipse_mask)
    assert (labels == 0).any()
    assert labels[12, 12] == 2


def test_point_labels_equal_a_naive_loop():
    points = [[4.0, 5.0, 1], [15.7, 9.2, 1]]
    labels = point_labels((20, 24), points, classes=2, disc=2.5, far=6.0)
    for y in range(20):
        for x in range(24):
            distance = min(np.hypot(x - int(px), y - int(py)) for px, py, _ in points)
            expected = 1 if distance <= 2.5 else 3 if distance >= 6.0 else IGNORE
            assert labels[y, x] == expected, (x, y)
    assert (point_labels((5, 5), [], 1, 2.0, 3.0) == IGNORE).all()
    assert not (point_labels((20, 24), points, 2, 2.5, far=0) == 3).any()


def outline(c, margin=0, polygons=(), circles=()) -> dict:
    return {"class": c, "margin": margin, "polygons": polygons, "circles": circles}


def test_a_disc_is_as_a_loop_has_it():
    labels = shape_labels((20, 24), [outline(1, 2, circles=[[9.5, 8, 5]])], classes=3)
    for y in range(20):
        for x in range(24):
            away = np.hypot(x + 0.5 - 9.5, y + 0.5 - 8)
            if away <= 5:
                assert labels[y, x] == 1, (x, y)
            elif away > 8.5:
                assert labels[y, x] == 6, (x, y)
    assert (labels == IGNORE).sum() > 40, "the margin around the disc must be ignored"
    assert IGNORE not in shape_labels((20, 24), [outline(1, 0, circles=[[9.5, 8, 5]])], classes=3)


def test_polygons_holes_and_borders_of_two_classes():
    square, hole = [[4, 4], [20, 4], [20, 20], [4, 20]], [[10, 10], [14, 10], [14, 14], [10, 14]]
    labels = shape_labels((24, 30), [outline(0, polygons=[square, hole])], classes=2)
    assert (labels[5:9, 5:19] == 0).all()
    assert labels[11, 11] == labels[2, 2] == labels[22, 22] == 4
    right = [[20, 0], [30, 0], [30, 24], [20, 24]]
    labels = shape_labels((24, 30), [outline(0, 2, [square]), outline(1, 2, [right])], classes=2)
    assert set(labels[12, 18:22]) == {IGNORE}, "pixels where two classes touch must be ignored"
    assert (labels[12, 8], labels[12, 25], labels[1, 1]) == (0, 1, 4)
    boxes = shape_boxes([outline(0, polygons=[square]), outline(1, circles=[[9, 8, 5]])])
    assert boxes == [[4, 4, 20, 20, 0], [4, 3, 14, 13, 1]]


def test_shapes_say_what_is_outside_of_them(data, monkeypatch):
    monkeypatch.setattr(weak_records, "CLASSES_FOLDER", data / "datasets/classes")
    trees.shapes(data)
    mapper, at = mapper_of(data, SYNONYMS=False, PROMPTS=4), load_classes("ucmerced_shapes").classes.index
    beach, tanks = records_of("ucmerced_shapes_train")
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(beach)
        says = dict(zip(sample["vocabulary"].classes, sample["says"].T))
        if "sea" in says:
            assert (says["sea"][at("sea")], says["sea"][at("beach")], says["sea"][-1]) == (YES, NO, NO)
        if "beach" in says:
            assert says["beach"][-1] == UNKNOWN, "not every beach is outlined, so a beach elsewhere is unknown"
        assert set(sample["sem_seg"].unique().tolist()) <= {at("sea"), at("beach"), IGNORE}
        seen |= set(says)
        np.random.seed(seed)
        sample = mapper(tanks)
        assert set(sample["sem_seg"].unique().tolist()) <= {at("storage tank"), len(sample["says"]) - 1, IGNORE}
        says = dict(zip(sample["vocabulary"].classes, sample["says"].T))
        if "storage tank" in says:
            assert (says["storage tank"][at("storage tank")], says["storage tank"][-1]) == (YES, NO)
        assert (sample["sem_seg"][sample["prompts"]["masks"].any(0)] == at("storage tank")).all()
    assert {"sea", "beach"} <= seen


def test_mosaic_cells_cover_the_image_and_have_ragged_edges():
    np.random.seed(0)
    for count in (1, 2, 3, 4):
        cells = ragged_cells(96, count)
        shares = np.bincount(cells.ravel(), minlength=count) / cells.size
        assert len(shares) == count
        assert shares.min() > 0.01
    border = np.argmax(np.diff(ragged_cells(96, 2, wobble=0.1).astype(int), axis=1) != 0, axis=1)
    assert len(set(border.tolist())) > 4, "the border between cells must not be a straight line"
    np.random.seed(3)
    one = ragged_cells(64, 3)
    np.random.seed(3)
    assert (one == ragged_cells(64, 3)).all()


def test_a_random_part_is_a_square_of_the_image():
    np.random.seed(0)
    image = np.tile(np.arange(80, dtype=np.uint8)[None, :, None], (60, 1, 3))
    part = random_part(image, 32, least=0.5)
    assert part.shape == (32, 32, 3)
    row = part[0, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()
    assert 28 <= row[-1] - row[0] + 1 <= 60


def test_crops_contain_an_object_at_a_useful_scale():
    np.random.seed(0)
    for _ in range(20):
        x, y, width, height = object_square([[100, 80, 112, 90, 0]], (200, 300), 128)
        assert width == height
        assert 0 <= x <= 300 - width
        assert 0 <= y <= 200 - height
        assert x <= 100
        assert x + width >= 112
        assert 12 * 128 / width >= 12, "a crop must never be shrunk"
    x, y, width, _ = object_square([], (50, 300), 128)
    assert width == 50
    assert y == 0


def test_every_kind_of_label_gives_a_sample(data):
    mapper, concepts = mapper_of(data), load_concepts()
    for name in SETS:
        np.random.seed(1)
        sample = mapper(records_of(name)[0])
        values = [v for v in sample["sem_seg"].unique().tolist() if v != IGNORE]
        assert sample["image"].shape == (3, 48, 48)
        assert sample["says"].dtype == torch.int8
        assert sample["says"].shape[1] == len(sample["vocabulary"])
        assert max(values, default=0) < len(sample["says"]), name
        assert int(sample["says"].min()) >= (MAYBE if name == "epfl_roads_train" else UNKNOWN)
        assert len(set(sample["vocabulary"].classes)) == len(sample["vocabulary"])
    assert concepts.names


def test_label_not_road_denies_road_and_says_nothing_else(data):
    np.random.seed(0)
    sample = mapper_of(data, SYNONYMS=False)(records_of("epfl_roads_train")[0])
    names, says = sample["vocabulary"].classes, sample["says"]
    road = names.index("road")
    assert (says[0, road], says[1, road]) == (NO, YES)
    denied = {name for c, name in enumerate(names) if says[0, c] == NO}
    assert denied <= {"road", "freeway", "overpass"}
    common = {name for c, name in enumerate(names) if says[0, c] == MAYBE}
    assert len(common) >= CANDIDATES, "the label 'not road' means one of several common classes"
    assert common < set(COMMON) - {"road"}


def test_a_boxed_sample_asks_for_the_class_of_its_box(data):
    mapper = mapper_of(data, SYNONYMS=False)
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(records_of("simd_train")[0])
        for c, name in enumerate(sample["vocabulary"].classes):
            yes = [v for v, said in enumerate(sample["says"][:, c].tolist()) if said == YES]
            if np.isin(sample["sem_seg"].numpy(), yes).any():
                seen.add(name)
    assert {"car", "airliner"} <= seen


def test_missing_box_masks_are_an_error(data):
    mapper = mapper_of(data, BOX_MASKS="nowhere")
    with pytest.raises(BadData, match="set INPUT.BOX_MASKS to the folder that tools/box_masks.py made"):
        mapper(records_of("simd_train")[0])


def test_a_scene_sample_has_a_mask_of_its_class_or_captions(data):
    mapper, record = mapper_of(data, SYNONYMS=False), records_of("rsicd_scenes_train")[0]
    mosaics = captions = 0
    for seed in range(20):
        np.random.seed(seed)
        sample = mapper(record)
        cells = sample["sem_seg"].unique().tolist()
        mosaics += len(cells) > 1
        if "captions" in sample:
            captions += 1
            assert cells == [0]
            assert len(set(sample["captions"])) == len(sample["captions"]) > 1
        if "crop field" in sample["vocabulary"].classes:
            assert sample["says"][0, sample["vocabulary"].classes.index("crop field")] == YES
    assert mosaics > 5
    assert captions > 2


def test_a_concept_counts_when_two_captions_mention_it(data):
    record = records_of("rsicd_scenes_train")[0]
    airplane, field = map(load_concepts().index, ("airplane", "crop field"))
    assert said_of(record) == {airplane: 3, field: 10}
    assert said_of({**record, "captions": ["an airplane", "a field"]}) == {}
    assert said_of({**record, "captions": ["an airplane"]}) == {airplane: 3}
    assert said_of({**record, "captions": []}) == {}


def test_prompts_are_drawn_on_objects_and_never_on_the_rest(data):
    mapper = mapper_of(data, PROMPTS=4)
    for name in SETS:
        for seed in range(4):
            np.random.seed(seed)
            sample = mapper(records_of(name)[0])
            masks, labels = sample["prompts"]["masks"], sample["sem_seg"]
            assert masks.shape == (4, 48, 48)
            if name == "epfl_roads_train" and masks.any():
                assert (labels[masks.any(0)] == 1).all()
            if name == "simd_train" and masks.any():
                assert labels[masks.any(0)].max() < len(load_classes("vehicles"))
            if name in ("urban_trees_train", "rsicd_scenes_train"):
                assert not masks.any()


def test_a_record_without_any_label_is_an_error(data):
    with pytest.raises(ValueError, match="x.png has no label image, boxes, points, shapes or scene class"):
        mapper_of(data)({"file_name": "x.png", "dataset": "dubai"})


def test_every_loss_term_has_a_gradient_in_a_batch_of_all_kinds(data, cfg):
    from skysense_o.meta_arch import SkySenseO
    from skysense_o.partial_objective import KNOWN_TERMS

    np.random.seed(0)
    mapper, loss = mapper_of(data, CROP_SIZE=64), cfg.MODEL.LOSS
    samples = [mapper(records_of(name)[0]) for name in SETS for _ in range(6 if "scenes" in name else 2)]
    assert any("captions" in sample for sample in samples)
    for name in set(KNOWN_TERMS) - {"focal"}:
        loss[name.upper()] = 1.0
    torch.manual_seed(0)
    model = SkySenseO(cfg).train()
    terms = model.losses(samples)
    assert set(terms) == {f"loss_{name}" for name in KNOWN_TERMS if name != "focal"}
    for name, term in terms.items():
        assert term.isfinite(), name
        assert term > 0, name
    sum(terms.values()).backward()
    gradient = model.tower.image.blocks[-1][0].conv_pw.weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    loss.REGION_PUBLISHED = 1.0
    with pytest.raises(ValueError, match="REGION_PUBLISHED need complete labels.*set them to 0"):
        SkySenseO(cfg).losses(samples)


def test_a_graph_of_concepts_relates_those_that_samples_show(data, call):
    """`tools/build_graph.py` makes it, and samples drawn with it say how alike their words look."""
    config, path = data / "training.yaml", data / "graph.json"
    config.write_text(
        f"VERSION: 2\nINPUT: {{MAPPER: mixed, CROP_SIZE: 64, BOX_MASKS: {data / 'masks'}}}\n"
        'DATASETS: {TRAIN: ["epfl_roads_train", "rsicd_scenes_train"]}\n'
    )
    command = ("tools/build_graph.py", "--by", "concepts", "--limit", "3", "--output", path)
    assert "--by concepts needs --training" in call(*command)[2]
    code, _, err = call(*command, "--training", config)
    assert code == 0, err
    graph = load_graph(path)
    assert graph.names == load_concepts().names
    related = graph.scores.any(0)
    assert related[graph.index["road"]]
    assert not related[graph.index["helicopter"]]
    np.random.seed(0)
    sample = mapper_of(data, GRAPH=str(path))(records_of("epfl_roads_train")[0])
    assert sample["visual_similarity"].shape == (len(sample["vocabulary"]),) * 2
    assert "visual_similarity" not in mapper_of(data)(records_of("epfl_roads_train")[0])


def records(count: int, name: str) -> list[dict]:
    return [{"file_name": f"{name}{i}"} for i in range(count)]


def mixed(weights, seed=0) -> MixedSamples:
    return MixedSamples([records(3, "a"), records(50, "b")], weights, lambda record: dict(record), seed)


def test_each_round_has_the_configured_number_of_samples_per_set():
    samples = mixed((3, 1))
    for block in range(5):
        assert Counter(samples.locate(4 * block + i)[0] for i in range(4)) == {0: 3, 1: 1}
    assert len({tuple(samples.locate(4 * b + i)[0] for i in range(4)) for b in range(20)}) > 1, (
        "the order of the data sets within a round must be random"
    )


def test_each_set_repeats_only_after_all_its_records():
    samples = mixed((1, 1))
    first = [samples[i]["file_name"] for i in range(100) if samples.locate(i)[0] == 1]
    assert sorted(first) == sorted(r["file_name"] for r in records(50, "b"))
    own = [samples.locate(i)[1] for i in range(40) if samples.locate(i)[0] == 0]
    assert own == list(range(20))


def test_a_sample_is_a_function_of_seed_and_index():
    """Sample i depends only on seed and index, so a run resumes by starting at another index."""
    whole = [mixed((2, 3))[i]["file_name"] for i in range(30)]
    resumed = mixed((2, 3))
    assert [resumed[i]["file_name"] for i in range(17, 30)] == whole[17:]
    assert [mixed((2, 3), seed=1)[i]["file_name"] for i in range(30)] != whole


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, 2.5), (1, -1)])
def test_invalid_sampling_weights_are_an_error(weights):
    with pytest.raises(ValueError, match="give one whole number, 1 or more, for each of the 2 sets"):
        check_weights(weights, 2)
    with pytest.raises(ValueError, match="DATASETS.WEIGHTS"):
        mixed(weights)


def test_captions_are_not_read_with_input_captions_0(data):
    """A training on openly licensed data must not learn from captions without a licence."""
    record = {**records_of("rsicd_scenes_train")[0], "captions": ["a swimming pool"]}
    pool = load_concepts().index("swimming pool")
    for captions, said in ((32, {pool}), (0, set())):
        assert set(mapper_of(data, CAPTIONS=captions)._said(record)) == said
    mapper, samples = mapper_of(data, CAPTIONS=0), []
    for seed in range(20):
        np.random.seed(seed)
        samples.append(mapper(record))
    assert not any("captions" in sample for sample in samples)
