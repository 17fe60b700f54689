"""Tests of counting with a density map, learned from answers and from object positions."""

from __future__ import annotations

import json
from collections import Counter as Counts

import numpy as np
import pytest
import torch
from conftest import ROOT, small_config
from PIL import Image

from skysense_o.byte_cache import byte_cache
from skysense_o.checkpoint import WeightsError, load_weights, save_weights
from skysense_o.config import model_config
from skysense_o.data.catalog import records_of
from skysense_o.data.question_mapper import QuestionMapper, read_points
from skysense_o.inference.classify import load_vqa_model
from skysense_o.modeling import Features
from skysense_o.training.known import fill_answers
from skysense_o.training.run import build_model, check_config
from skysense_o.vqa import EmbeddedVQA
from skysense_o.vqa.counter import CELLS, MARKED, Counter, counting_maps, density_loss, marked_density

ANSWERS = ("0", "1", "2", "3", "4", "5", "about 7", "yes")


def blobs(generator, many=64):
    """Return noise maps with up to five bright cells in each of two channels.

    Also return the channel to count (one-hot), and the number and points of this channel's bright cells.
    """
    numbers = torch.randint(6, (many, 2), generator=generator)
    kinds = torch.randint(2, (many,), generator=generator)
    maps, points = torch.rand(many, 4, CELLS, CELLS, generator=generator), []
    for m, both, kind in zip(maps, numbers.tolist(), kinds.tolist()):
        cells = torch.randperm(CELLS * CELLS, generator=generator)[: sum(both)].split(both)
        for channel, some in enumerate(cells):
            m[channel, some // CELLS, some % CELLS] = 4
        points.append(torch.stack([cells[kind] % CELLS + 0.5, cells[kind] // CELLS + 0.5], 1) / CELLS)
    return maps, torch.eye(2)[kinds], numbers.gather(1, kinds[:, None])[:, 0], points


def test_it_learns_to_count_and_where():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    counter = Counter([4], 2, ANSWERS, width=32, dropout=0.0)
    assert counter.numbers == (0, 1, 2, 3, 4, 5), (
        "the counter must leave out the answers 'about 7' and 'yes', which are no numbers"
    )
    optimizer = torch.optim.AdamW(counter.parameters(), lr=3e-2)
    for _ in range(160):
        maps, text, numbers, points = blobs(generator, 16)
        losses = counter.losses(*counter([maps], text), [str(n) for n in numbers.tolist()], points)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    maps, text, numbers, points = blobs(generator)
    with torch.inference_mode():
        scores, density = counter.eval()([maps], text)
    assert (scores.argmax(1) == numbers).float().mean() > 0.5, (
        "accuracy must be far above chance, which is 0.17 with six numbers"
    )
    five = int(numbers.argmax())
    x, y = (points[five] * CELLS).long().T
    assert density[five, y, x].mean() > 5 * density[five].mean(), "the density must be high where the objects are"


def test_answers_that_are_not_numbers_have_no_loss():
    counter = Counter([4], 8, ANSWERS)
    maps = torch.rand(2, 4, CELLS, CELLS)
    losses = counter.losses(*counter([maps], torch.ones(2, 8)), ["yes", "about 7"], [torch.rand(3, 2), None])
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_count": 0.0, "loss_density": 0.0}
    sum(losses.values()).backward()


def test_density_targets_sum_to_the_annotated_count():
    counter, points = Counter([4], 8, ANSWERS).eval(), torch.rand(2, 2)
    seen = counter([torch.rand(1, 4, CELLS, CELLS)], torch.ones(1, 8))
    loss = counter.losses(*seen, ["5"], [points])["loss_density"]
    assert torch.isclose(loss, MARKED * density_loss(seen[1], marked_density(points, 5)[None]).sum())


def test_object_locations_sum_to_the_annotated_count():
    points = torch.tensor([[0.25, 0.5], [0.99, 0.01]])
    target = marked_density(points, 3)
    assert target.shape == (CELLS, CELLS)
    assert float(target.sum()) == pytest.approx(3), "objects at the border must count fully, too"
    assert float(target[12:20, 4:12].sum()) == pytest.approx(1.5, abs=0.01)
    assert float(marked_density(torch.empty(0, 2), 0).sum()) == 0
    right = density_loss(target[None], target[None])
    assert right < density_loss(target.roll(8, 0)[None], target[None])
    assert right < density_loss(2 * target[None], target[None])


def test_objects_smaller_than_a_cell_are_not_lost():
    fine = torch.zeros(1, 3, 2 * CELLS, 2 * CELLS)
    fine[0, 1, 5, 7] = 1
    dense, pyramid, stage = torch.rand(1, 8, 16, 16), (torch.rand(1, 4, CELLS, CELLS), fine), torch.rand(1, 5, 8, 8)
    maps = counting_maps(Features(dense, pyramid, dense.mean((2, 3)), (stage,)))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 16), (4, CELLS, CELLS), (6, CELLS, CELLS), (5, 8, 8)]
    assert maps[2][0, 1, 2, 3] == 0.25
    assert maps[2][0, 4, 2, 3] == 1


@pytest.fixture
def cars(tmp_path, monkeypatch):
    """Write images with one white car each, questions as in RSIVQA, and the positions of the cars."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder, lines, marks = tmp_path / "ucmerced", [], []
    (folder / "images" / "overpass").mkdir(parents=True)
    for number in range(3):
        image = np.zeros((64, 48, 3), np.uint8)
        x, y = 5 + 12 * number, 50 - 9 * number
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
        name = f"images/overpass/overpass{number:02}.jpg"
        Image.fromarray(image).save(folder / name, quality=100)
        for question, answer in (("How many cars in the image?", "one"), ("Is there a car?", "yes")):
            entry = {"image": name, "split": "train", "question": question, "answer": answer, "kind": "human"}
            lines.append(json.dumps(entry))
        marks.append(json.dumps({"image": name, "what": "car", "points": [[x + 0.5, y + 0.5]]}))
    (folder / "vqa.jsonl").write_text("\n".join(lines))
    (tmp_path / "points.jsonl").write_text("\n".join(marks))
    return tmp_path / "points.jsonl"


def counting_config(points):
    cfg = small_config()
    cfg.MODEL.META_ARCHITECTURE = "EmbeddedVQA"
    cfg.MODEL.VQA.ANSWERS = list(ANSWERS)
    cfg.MODEL.VQA.SIDE, cfg.MODEL.VQA.WIDTH, cfg.MODEL.VQA.GRID = 64, 32, 2
    cfg.MODEL.VQA.COUNTING, cfg.INPUT.POINTS = True, str(points)
    return cfg


def test_points_rotate_with_the_image(cars):
    records = records_of("rsivqa_train_count")
    assert {record["question"] for record in records} == {"How many cars in the image?"}
    assert len(records_of("rsivqa_train")) == 6
    mapper, turns = QuestionMapper(counting_config(cars)), set()
    for _ in range(20):
        for record in records:
            sample = mapper(record)
            _, height, width = sample["image"].shape
            x, y = (sample["points"][0] * torch.tensor([width, height])).long().tolist()
            assert sample["image"][:, y, x].min() > 200, "the point must lie on the white car"
            turns.add(sample["file_name"][-1])
    assert turns == set("0123")
    reds = [mapper({**records[0], "question": "How many red cars in the image?", "answer": "zero"}) for _ in range(20)]
    asked = {(sample["question"], sample["answer"], len(sample.get("points", ()))) for sample in reds}
    assert asked == {("How many red cars in the image?", "zero", 0), ("How many cars in the image?", "1", 1)}
    where = mapper({**records[0], "question": "Where is the car?", "answer": "left"})
    assert where["file_name"] == records[0]["file_name"], "a question about directions must not rotate the image"


def test_an_image_is_asked_about_all_annotated_objects(cars):
    marks = {"red car": [[6, 16]], "car": [[24, 32], [6, 16]]}
    cars.write_text(
        "\n".join(json.dumps({"image": "overpass/overpass00", "what": k, "points": p}) for k, p in marks.items())
    )
    mapper, record = QuestionMapper(counting_config(cars)), records_of("rsivqa_train_count")[0]
    np.random.seed(0)
    samples = [mapper(record) for _ in range(300)]
    asked = Counts((sample["question"], sample["answer"]) for sample in samples)
    assert set(asked) == {("How many cars in the image?", "one"), ("How many red cars in the image?", "1")}
    assert 170 < asked["How many cars in the image?", "one"] < 230, (
        "about two of three samples must keep the question that people asked"
    )
    unturned = {s["question"]: s["points"].tolist() for s in samples if s["file_name"].endswith("turned 0")}
    assert unturned["How many red cars in the image?"] == [[0.125, 0.25]], (
        "points must be given as shares of the image's width and height"
    )
    assert unturned["How many cars in the image?"] == [[0.5, 0.5], [0.125, 0.25]]


def test_the_counter_leaves_other_answers_as_they_are(cars):
    torch.manual_seed(0)
    cfg = counting_config(cars)
    model, mapper = EmbeddedVQA(cfg), QuestionMapper(cfg)
    losses = model.train()([mapper(record) for record in records_of("rsivqa_train_count")])
    assert set(losses) == {"loss_answer", "loss_count", "loss_density"}
    assert losses["loss_density"] > 0
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(4)]
    asked = images, ["Is there a car?", "How many cars?"] * 2
    model.eval()
    with torch.no_grad():
        model.counter.habit.bias[4] += 100
        model.head[-1].bias[ANSWERS.index("yes")] += 100
    assert model.answer(*asked) == ["yes", "4"] * 2, "a number answers how many, and the counter decides which number"
    with torch.no_grad():
        model.head[-1].bias[ANSWERS.index("2")] += 200
    assert model.answer(*asked) == ["4"] * 4, (
        "the head decides that the answer is a number, and the counter decides which number"
    )


def test_each_number_goes_to_its_question(cars, monkeypatch):
    model = EmbeddedVQA(counting_config(cars)).eval()
    images = [torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (10, 20, 30)]
    questions = ["Is there a car?", "How many cars?", "How many boats?"]
    said = torch.tensor([[0.0] * 7 + [1], [1] + [0.0] * 7, [1] + [0.0] * 7])
    monkeypatch.setattr(model, "scores", lambda places, text: said)
    given = {}

    def count(seen, text):
        given.update(values=[int(image[0, 0, 0]) for image in seen], text=text)
        return [3, 5]

    monkeypatch.setattr(model, "count", count)
    assert model.answer(images, questions) == ["yes", "3", "5"]
    assert given["values"] == [20, 30]
    assert torch.allclose(given["text"], model._encode(questions[1:]), atol=1e-5), (
        "text embeddings may differ by rounding only, as they are encoded in another batch"
    )


def test_a_rotated_image_has_the_same_count(cars):
    """The count distribution, averaged over four rotations of the image, does not depend on the image's orientation.

    Without averaging, this distribution does depend on it.
    """
    torch.manual_seed(0)
    model, shares = EmbeddedVQA(counting_config(cars)).eval(), []
    with torch.no_grad():
        model.counter.near.weight.normal_(std=3.0)  # large asymmetric weights, so that a rotation changes the result
        model.counter.sharpness.bias.fill_(-5)
    model.counter.register_forward_hook(lambda module, given, gives: shares.append(gives[0].softmax(1)))
    image, text = torch.randint(256, (3, 64, 64), dtype=torch.uint8), model._encode(["How many cars?"])
    for turn in range(2):
        model.count([torch.rot90(image, turn, (1, 2))], text)
    assert len(shares) == 8
    assert torch.allclose(sum(shares[:4]), sum(shares[4:]), atol=1e-5)
    assert not torch.allclose(shares[0], shares[1], atol=1e-4)


def test_it_learns_under_bf16_too(cars):
    """Training under bf16 autocast works, although autocast cannot stack features cached in half precision."""
    cfg = counting_config(cars)
    model, mapper = EmbeddedVQA(cfg).train(), QuestionMapper(cfg)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([mapper(record) for record in records_of("rsivqa_train_count")])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_features_do_not_depend_on_the_batch(cars):
    cfg = counting_config(cars)
    samples = [QuestionMapper(cfg)(record) for record in records_of("rsivqa_train_count")]
    model = EmbeddedVQA(cfg).train()
    together = model._cached(samples)
    for i, sample in enumerate(samples):
        model._cache.clear()
        assert all(torch.equal(one[0], many[i]) for one, many in zip(model._cached([sample]), together))


def test_a_side_that_needs_padding_is_an_error(cars):
    cfg = counting_config(cars)
    cfg.MODEL.VQA.SIDE = 72
    with pytest.raises(ValueError, match="is 72, but this tower needs a multiple of 32: set MODEL.VQA.SIDE to 64"):
        EmbeddedVQA(cfg)


def test_points_outside_the_image_are_an_error(cars):
    cars.write_text(json.dumps({"image": "overpass/overpass00", "what": "car", "points": [[100, 3]]}))
    with pytest.raises(ValueError, match=r"has points up to \[100.0, 3.0\] in .*overpass00.jpg, which is 48 x 64"):
        QuestionMapper(counting_config(cars))(records_of("rsivqa_train_count")[0])


@pytest.mark.parametrize(
    "line", ['{"image": "a.png", "points": []}', "no json", '{"image": "a", "what": "b", "points": [1]}']
)
def test_a_line_without_points_is_an_error(tmp_path, line):
    path = tmp_path / "points.jsonl"
    path.write_text('{"image": "a/b.tif", "what": "car", "points": [[1, 2]]}\n')
    assert read_points(path) == {"a/b": {"car": [[1.0, 2.0]]}}
    path.write_text(path.read_text() + line)
    with pytest.raises(ValueError, match=r"points.jsonl, line 2: .* is not"):
        read_points(path)


def test_a_missing_file_of_points_is_an_error(cars):
    with pytest.raises(
        FileNotFoundError, match=r"INPUT.POINTS 'nowhere.jsonl' is not in datasets/points, which has ucm"
    ):
        QuestionMapper(counting_config("nowhere.jsonl"))


def test_marks_that_no_training_would_see_are_refused(cars, tmp_path):
    cfg = counting_config(cars)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.INPUT.MAPPER = ("rsivqa_train_count",), (), "questions"
    check_config(cfg, eval_only=False, resume=False)
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text('{"image": "a/b.tif", "what": "car", "points": [[1, 2]]}')
    cfg.INPUT.POINTS = str(elsewhere)
    with pytest.raises(ValueError, match=r"has no image of the 'how many' questions .*: the file has \['a/b'\]"):
        check_config(cfg, eval_only=False, resume=False)
    check_config(cfg, eval_only=True, resume=False)
    elsewhere.write_text("")
    with pytest.raises(ValueError, match=r"the file has \[\], the questions have"):
        check_config(cfg, eval_only=False, resume=False)
    cfg.INPUT.MAPPER = "labels"
    with pytest.raises(ValueError, match="INPUT.POINTS are for INPUT.MAPPER 'questions', not 'labels'"):
        check_config(cfg, eval_only=False, resume=False)


def test_the_marks_we_ship_are_those_that_are_written_of():
    marks, points, images = read_points("ucmerced.jsonl"), Counts(), Counts()
    for kinds in marks.values():
        for kind, some in kinds.items():
            images[kind] += 1
            points[kind] += len(some)
    table = (ROOT / "datasets/README.md").read_text()
    words = " ".join(table.split())
    assert f"has {points.total():,} points, in pixels, on objects in {len(marks)} training images of UC Merced" in words
    for kind in images:
        assert f"\n| {kind} | {images[kind]} | {points[kind]:,} |" in table
    places = np.array([point for kinds in marks.values() for some in kinds.values() for point in some])
    assert places.min() >= 0
    assert places.max() < 256


def test_a_file_holds_the_counter(cars, tmp_path):
    cfg = counting_config(cars)
    model = EmbeddedVQA(cfg).eval()
    save_weights(model, tmp_path / "count.safetensors", model_config(cfg).dump())
    again = load_vqa_model(tmp_path / "count.safetensors", "cpu")
    images, text = [torch.randint(256, (3, 64, 64), dtype=torch.uint8)], model._encode(["How many cars?"])
    assert again.counter.numbers == model.counter.numbers
    with torch.no_grad():
        before, after = (m.counter(counting_maps(m.encode_images(images)), text)[0] for m in (model, again))
    assert torch.allclose(before, after, atol=1e-4)
    without = counting_config("")
    without.MODEL.VQA.COUNTING = False
    left = load_weights(
        EmbeddedVQA(without), tmp_path / "count.safetensors", ignore_unexpected=without.MODEL.IGNORE_UNEXPECTED
    )
    assert "counter.density.weight" in left.passed_over, (
        "a model without a counter must accept the file and skip the counter's tensors"
    )


def test_the_list_of_answers_comes_with_the_head(cars, tmp_path):
    cfg = counting_config(cars)
    save_weights(EmbeddedVQA(cfg), tmp_path / "count.safetensors", model_config(cfg).dump())
    cfg.MODEL.WEIGHTS, cfg.DATASETS.TRAIN = str(tmp_path / "count.safetensors"), ("rsivqa_train_count",)
    said = {}
    for new in ("^counter", "^(head|counter)"):
        cfg.MODEL.VQA.ANSWERS, cfg.MODEL.ALLOW_MISSING = [], [new]
        fill_answers(cfg, eval_only=False)
        said[new] = tuple(cfg.MODEL.VQA.ANSWERS)
    assert said == {"^counter": ANSWERS, "^(head|counter)": ("1",)}


def test_only_training_starts_a_counter_from_scratch(cars, tmp_path):
    cfg = counting_config(cars)
    cfg.MODEL.VQA.COUNTING = False
    save_weights(EmbeddedVQA(cfg), tmp_path / "vqa.safetensors", model_config(cfg).dump())
    cfg.MODEL.VQA.COUNTING, cfg.MODEL.ALLOW_MISSING = True, [r"^counter\."]
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(tmp_path / "vqa.safetensors"), "cpu"
    assert build_model(cfg, cfg.MODEL.ALLOW_MISSING).counter is not None
    with pytest.raises(WeightsError, match=r"missing.*counter\."):
        build_model(cfg)


def test_the_cache_is_bounded(cars):
    cfg = counting_config(cars)
    model = EmbeddedVQA(cfg).train()
    samples = [QuestionMapper(cfg)(record) for record in records_of("rsivqa_train_count")]
    calls, encode = [], model.encode_images
    model.encode_images = lambda images: calls.append(len(images)) or encode(images)
    model._cache = byte_cache(0)
    for _ in range(2):
        model(samples)
    model._cache = byte_cache(2**30)
    for _ in range(2):
        model(samples)
    assert calls == [1] * 9, "without cache both passes encode all images; with a cache only the first does"
