"""Tests of pretraining: contrastive losses across processes, the reconstruction loss, data and metrics."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, small_config
from training.test_whole_path import command

from skysense_o.checkpoint import load_weights, save_weights
from skysense_o.config import default_config, model_config
from skysense_o.data.caption_mapper import CaptionMapper
from skysense_o.data.captions import read_captioned_images, read_record_image, words_of
from skysense_o.data.catalog import records_of
from skysense_o.evaluation.zero_shot import evaluate_pairs, recalls
from skysense_o.meta_arch import SkySenseO
from skysense_o.pretraining import ImageTextPretraining, contrast, pairwise_sigmoid
from skysense_o.training.optimizer import build_optimizer
from skysense_o.vocabulary import Vocabulary


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_contrast_equals_its_naive_twin():
    # The first and the third image have the same caption.
    a, b, ids = unit(5, 7), unit(5, 7, seed=1), torch.tensor([0, 1, 0, 2, 3])
    total = 0.0
    for i in range(5):
        for x, y in ((a, b), (b, a)):
            rivals = [j for j in range(5) if j == i or ids[j] != ids[i]]
            total -= (8 * x[i] @ y[i]) - torch.logsumexp(torch.stack([8 * x[i] @ y[j] for j in rivals]), 0)
    torch.testing.assert_close(contrast(a, b, 8.0, ids), total / 10)


def test_pairwise_sigmoid_equals_its_naive_twin():
    a, b, total = unit(4, 7), unit(4, 7, seed=1), 0.0
    for i in range(4):
        for j in range(4):
            sign = 1 if i == j else -1
            total -= torch.log(torch.sigmoid(sign * (8 * a[i] @ b[j] - 3)))
    scale, bias = torch.tensor(8.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    torch.testing.assert_close(pairwise_sigmoid(a, b, scale, bias), total / 4)


TWO = """
import sys
import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from skysense_o.pretraining import contrast, pairwise_sigmoid

def main(file):
    a, b, ids = torch.load(file)
    rank, n = comm.get_rank(), len(a) // comm.get_world_size()
    mine = slice(rank * n, (rank + 1) * n)
    out = []
    for loss in (
        lambda x, y: contrast(x, y, 8.0, ids[mine]),
        lambda x, y: pairwise_sigmoid(x, y, torch.tensor(8.0), torch.tensor(-3.0), ids[mine]),
    ):
        x, y = a[mine].clone().requires_grad_(), b[mine].clone().requires_grad_()
        value = loss(x, y)
        value.backward()
        value = value.detach()
        dist.all_reduce(value)
        out.append((value / comm.get_world_size(), x.grad / comm.get_world_size(), y.grad / comm.get_world_size()))
    torch.save(out, f"{file}.{rank}")

if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
"""


def test_contrast_over_two_processes_equals_one(tmp_path):
    """Two processes with half a batch each give the loss and gradients of one process with the whole batch."""
    a, b, ids = unit(6, 5), unit(6, 5, seed=1), torch.tensor([0, 1, 2, 0, 3, 4])
    torch.save((a, b, ids), tmp_path / "batch")
    (tmp_path / "two.py").write_text(TWO)
    done = command(tmp_path / "two.py", tmp_path / "batch", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = [torch.load(f"{tmp_path}/batch.{rank}") for rank in (0, 1)]
    scale, bias = torch.tensor(8.0), torch.tensor(-3.0)
    for place, loss in enumerate((contrast, lambda x, y, s, i: pairwise_sigmoid(x, y, scale, bias, i))):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = loss(x, y, 8.0, ids)
        value.backward()
        torch.testing.assert_close(parts[0][place][0], value.detach(), atol=1e-12, rtol=1e-9)
        for which, whole in ((1, x.grad), (2, y.grad)):
            both = torch.cat([parts[0][place][which], parts[1][place][which]])
            torch.testing.assert_close(both, whole, atol=1e-12, rtol=1e-9)


def pretraining(**changes) -> ImageTextPretraining:
    torch.manual_seed(0)
    cfg = small_config()
    for key, value in changes.items():
        cfg.PRETRAIN[key] = value
    return ImageTextPretraining(cfg)


def batch(folder, count: int = 6) -> list[dict]:
    np.random.seed(0)
    random.seed(0)  # colour jitter takes its random numbers from here
    cfg = small_config()
    cfg.INPUT.CROP_SIZE = 64
    mapper = CaptionMapper(cfg)
    return [mapper(record) for record in read_captioned_images("captions.jsonl@train", folder)[:count]]


def test_chunks_change_no_loss_and_no_gradient(pairs):
    """Computing the loss in chunks, which recomputes activations to save memory, changes neither loss nor gradients."""
    results = []
    for chunk in (0, 4):
        model = pretraining(CHUNK=chunk).train()
        losses = model(batch(pairs))
        sum(losses.values()).backward()
        results.append((losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_reconstruction_is_of_hidden_pixels_only(pairs):
    """The reconstruction loss is L1 on hidden pixels only; predictions for visible pixels have no influence."""
    model, samples = pretraining(IMAGE_TEXT=0.0, IMAGE_IMAGE=0.0).eval(), batch(pairs, 2)
    assert set(dict(model.pretraining.items())) == {"pixels"}
    got = model(samples)["loss_reconstruction"]
    each = []
    for sample in samples:
        x = (sample["image"].float() - 127.5) / 127.5
        hidden = sample["hidden"]
        dense = model.tower.encode_image((x * ~hidden)[None]).dense
        said = F.pixel_shuffle(torch.einsum("bdhw,dc->bchw", dense, model.pretraining["pixels"]), 16)[0]
        each.append((said - x).abs()[:, hidden].mean())
    torch.testing.assert_close(got, sum(each) / 2, atol=1e-5, rtol=1e-5)
    share = samples[0]["hidden"].float().mean()
    assert share == pytest.approx(0.5, abs=0.01), "hiding 2 of the 4 blocks (32 x 32 pixels) comes nearest to 60 %"


def test_a_term_without_weight_has_no_parameters(pairs):
    assert dict(pretraining(IMAGE_TEXT=0.0, RECONSTRUCTION=0.0).pretraining.items()) == {}
    losses = pretraining(SIGMOID=True, IMAGE_IMAGE=0.0, RECONSTRUCTION=0.0)(batch(pairs))
    assert list(losses) == ["loss_image_text"]


def test_two_colours_are_learned(pairs):
    """After a few training steps, unseen images of two colours are classified and retrieved without an error."""
    model, samples = pretraining(IMAGE_IMAGE=0.0, RECONSTRUCTION=0.1).train(), batch(pairs, 8)
    optimizer = build_optimizer(model, [[".", 1.0, 0.0]], 3e-3)
    for _ in range(12):
        loss = sum(model(samples).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    records = read_captioned_images("captions.jsonl@test", pairs)
    numbers = evaluate_pairs(model, records, read_record_image, Vocabulary.of(records[0]["names"]), ["a {} ."], 64)
    assert numbers["top1"] == 1.0
    assert {"text_R@1", "text_R@5", "text_R@10", "image_R@1", "image_R@5", "image_R@10"} < set(numbers)
    assert model.training
    swapped = Vocabulary.of([(f"weather {i}", n) for i, n in enumerate(records[0]["names"][::-1])])
    numbers = evaluate_pairs(model, records, read_record_image, swapped, ["a {} ."], 64, flips=True)
    assert numbers["top1"] == 0.0  # each class's best phrase is the other class's name


def test_recalls_count_every_caption_that_is_shared():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.3, 0.2, 0.1]])
    right = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    assert recalls(scores, right) == {"R@1": pytest.approx(2 / 3), "R@5": 1.0, "R@10": 1.0}


def test_fine_tuning_starts_from_a_pretrained_tower(tmp_path):
    cfg = small_config()
    model = pretraining()
    save_weights(model, tmp_path / "clip.safetensors", model_config(cfg).dump())
    fresh = SkySenseO(cfg)
    report = load_weights(fresh, tmp_path / "clip.safetensors", [r"^sem_seg_head\."], cfg.MODEL.IGNORE_UNEXPECTED)
    assert torch.equal(fresh.tower.project.weight, model.tower.project.weight)
    assert {n.split(".")[0] for n in report.new} == {"sem_seg_head"}
    assert {n.split(".")[0] for n in report.passed_over} == {"pretraining"}


def test_sources(pairs, tmp_path):
    """The same images are read from JSON lines, CSV, folders and shards."""
    wanted = read_captioned_images("captions.jsonl@train", pairs)
    assert len(wanted) == 8
    assert wanted[0]["names"] == ["green forest", "river"]
    with open(pairs / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows([r["file_name"].removeprefix(f"{pairs}/"), r["captions"][0]] for r in wanted)
    table = read_captioned_images("table.csv", pairs)
    assert [(r["file_name"], r["captions"][:1], r["label"]) for r in table] == [
        (r["file_name"], r["captions"][:1], r["label"]) for r in wanted
    ]
    assert {r["captions"][0] for r in read_captioned_images("images/", pairs)} == {
        "a satellite photo of green forest.",
        "a satellite photo of river.",
    }
    for number, part in enumerate((wanted[:5], wanted[5:])):
        with tarfile.open(pairs / f"shard-{number}.tar", "w") as tar:
            for i, record in enumerate(part):
                tar.add(record["file_name"], f"{i:04d}.png")
                body = json.dumps({"caption": record["captions"][1]}).encode()
                info = tarfile.TarInfo(f"{i:04d}.json")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    shards = read_captioned_images("shard-*.tar", pairs)
    assert [r["captions"] for r in shards] == [r["captions"][1:] for r in wanted]
    for shard, record in zip(shards, wanted):
        assert np.array_equal(read_record_image(shard), read_record_image(record))


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("nowhere.jsonl", FileNotFoundError, "nothing is at"),
        ("captions.jsonl@moon", ValueError, "has no record of the split 'moon'"),
        ("bad.jsonl", ValueError, "line 1: image and caption or captions are needed, found path"),
    ],
)
def test_bad_sources_are_named(pairs, source, error, says):
    (pairs / "bad.jsonl").write_text('{"path": "a.jpg"}\n')
    with pytest.raises(error, match=says):
        read_captioned_images(source, pairs)


def test_names_of_folders():
    assert [words_of(n) for n in ("SeaLake", "parking_lot", "River")] == ["sea lake", "parking lot", "river"]


def test_left_stays_left(pairs):
    """An image whose caption names a direction is not flipped or rotated."""
    cfg = small_config()
    cfg.INPUT.CROP_SIZE, cfg.INPUT.COLOR_JITTER, cfg.PRETRAIN.CROP_SHARE = 64, 0.0, [1.0, 1.0]
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = 255
    from PIL import Image

    Image.fromarray(image).save(pairs / "half.png")
    mapper = CaptionMapper(cfg)
    for caption, kinds in (("snow on the left", 1), ("snow on a side", 4)):
        record, seen = {"file_name": str(pairs / "half.png"), "captions": [caption]}, set()
        for seed in range(24):
            np.random.seed(seed)
            sample = mapper(record)
            seen.add(tuple(sample["image"][0, ::40, ::40].flatten().tolist()))
        assert len(seen) == kinds, caption


def test_without_captions_any_word_of_the_class_is_used(pairs):
    """For a class without captions, each of its four words is used with each of the four templates."""
    cfg = small_config()
    cfg.INPUT.CROP_SIZE = 64
    image = next((pairs / "images/river").iterdir())
    record, mapper = {"file_name": str(image), "dataset": "eurosat", "label": 8}, CaptionMapper(cfg)
    np.random.seed(0)
    said = {mapper(record)["vocabulary"].classes[0] for _ in range(200)}
    assert len(said) == 16
    assert {"river", "an aerial photo of watercourse"} < said


def test_real_captions(tmp_path, monkeypatch):
    """The records of UC Merced match the shipped config; the test is skipped if the data are absent."""
    shared = ROOT.parent / "shared/data"
    if not (shared / "ucmerced/captions.jsonl").is_file():
        pytest.skip("no ../shared/data/ucmerced beside the project")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared))
    cfg = default_config()
    cfg.merge_from_file(str(ROOT / "configs/pretrain/mini.yaml"))
    counts = [len(records_of(name)) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    assert counts == [1890, 1890, 210, 210, 2000]
