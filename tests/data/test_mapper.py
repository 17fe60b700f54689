"""Tests of records, class words and training samples, and of the errors for wrong data."""

from __future__ import annotations

import itertools
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from skysense_o.byte_cache import byte_cache
from skysense_o.data.catalog import records_of
from skysense_o.data.classes import load_classes, load_distractors
from skysense_o.data.loader import NumberedSamples, training_loader
from skysense_o.data.mapper import KEPT_BYTES, TrainingMapper, evaluation_sample, read_image_and_labels, read_labels
from skysense_o.vocabulary import Vocabulary


def test_scenes_are_never_split(dubai):
    train, val = records_of("dubai_train"), records_of("dubai_val")
    assert [r["file_name"].rsplit("/", 1)[1][:5] for r in train] == ["tile1", "tile1", "tile2", "tile8"]
    assert [r["file_name"].rsplit("/", 1)[1][:5] for r in val] == ["tile5", "tile6"]
    without = {r["file_name"] for r in records_of("dubai_without_scene1")}
    scene = {r["file_name"] for r in records_of("dubai_scene1")}
    assert not without & scene
    assert len(without | scene) == 6


def test_the_error_for_missing_data_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/dubai/images.*DETECTRON2_DATASETS"):
        records_of("dubai_val")


def test_a_missing_label_names_the_file(dubai):
    (dubai / "labels" / "tile5_001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"tile5_001.jpg has no label image .*tile5_001.png"):
        records_of("dubai_val")


def test_the_error_for_an_unknown_data_set_lists_the_known_ones():
    with pytest.raises(KeyError, match="unknown data set 'dubia_val'; similar: dubai_val"):
        records_of("dubia_val")


def test_the_error_for_an_unknown_class_table_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="no class table 'mars'.*dubai"):
        load_classes("mars")


def test_a_missing_distractor_file_is_named():
    with pytest.raises(FileNotFoundError, match="'nothing.txt' is not in datasets/classes"):
        load_distractors("nothing.txt")


def test_labels_in_colour_are_an_error(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "label.png")
    with pytest.raises(ValueError, match="is a RGB image: labels must be one channel"):
        read_labels(str(tmp_path / "label.png"), (4, 4))


def test_labels_of_another_size_are_an_error(tmp_path):
    Image.new("L", (4, 5)).save(tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"has the size \(5, 4\), but its image \(9, 9\)"):
        read_labels(str(tmp_path / "label.png"), (9, 9))


def test_the_error_for_label_values_out_of_range_names_file_and_values(dubai, cfg):
    path = dubai / "labels" / "tile1_001.png"
    Image.fromarray(np.full((97, 131), 9, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"tile1_001.png holds ids \[9\]: they must be 0 to 4 or 255"):
        TrainingMapper(cfg)(records_of("dubai_train")[0])


def test_a_sample_has_the_documented_keys_and_shapes(dubai, cfg):
    cfg.INPUT.CROP_SIZE = 64
    np.random.seed(0)
    sample = TrainingMapper(cfg)(records_of("dubai_train")[0])
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, 64, 64)
    assert sample["sem_seg"].dtype == torch.int64
    assert set(sample["sem_seg"].unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    assert len(sample["vocabulary"]) == 5 + cfg.INPUT.DISTRACTORS


def test_image_and_labels_move_together(dubai, cfg):
    """After scaling, cropping, flipping and rotating, a pixel's colour still matches its label."""
    cfg.INPUT.CROP_SIZE, cfg.INPUT.COLOR_JITTER = 48, 0.0
    mapper, colors = TrainingMapper(cfg), torch.tensor(load_classes("dubai").colors)
    np.random.seed(1)
    for record in records_of("dubai_train") * 3:
        sample = mapper(record)
        distance = (sample["image"].permute(1, 2, 0)[:, :, None].float() - colors).norm(dim=-1)
        known = sample["sem_seg"] != 255
        agree = (distance.argmin(-1) == sample["sem_seg"])[known].float().mean()
        assert agree > 0.85, record  # the share is less than 1, because resizing blurs borders


def same(one, two) -> bool:
    return (
        torch.equal(one["image"], two["image"])
        and torch.equal(one["sem_seg"], two["sem_seg"])
        and one["vocabulary"] == two["vocabulary"]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_is_a_function_of_seed_and_index(dubai, cfg, workers):
    """A sample depends on seed and index only, not on the worker that loads it or the step at which the run starts."""
    cfg.INPUT.CROP_SIZE = 32
    records, mapper = records_of("dubai_train"), TrainingMapper(cfg)
    whole = training_loader(records, mapper, batch=2, start=0, seed=7, workers=0)
    first = [s for batch in itertools.islice(whole, 6) for s in batch]
    later = training_loader(records, mapper, batch=2, start=6, seed=7, workers=workers)
    again = [s for batch in itertools.islice(later, 3) for s in batch]
    assert all(same(a, b) for a, b in zip(first[6:], again))
    other = training_loader(records, mapper, batch=2, start=6, seed=8, workers=0)
    assert not all(same(a, b) for a, b in zip(again, next(iter(other))))


def test_every_image_comes_once_per_epoch(dubai, cfg):
    cfg.INPUT.CROP_SIZE = 32
    records = records_of("dubai_train")
    loader = training_loader(records, TrainingMapper(cfg), batch=2, start=0, seed=0, workers=0)
    seen = [s["file_name"] for batch in itertools.islice(loader, 4) for s in batch]
    assert sorted(seen[:4]) == sorted(seen[4:]) == [r["file_name"] for r in records]


def test_evaluation_keeps_the_whole_image(dubai):
    sample = evaluation_sample(records_of("dubai_val")[0], Vocabulary.of(load_classes("dubai").classes))
    assert sample["image"].shape[1:] == sample["sem_seg"].shape == (97, 131)


def test_each_epoch_is_shuffled_once(dubai):
    """Each epoch's permutation is computed once, because computing it takes 0.25 s for 5 million records."""
    records = [{"file_name": str(i)} for i in range(1000)]
    samples = NumberedSamples(records, lambda record: record, seed=3)
    drawn = [samples[i]["file_name"] for i in range(2000)]
    shuffles = [np.random.default_rng((3, epoch)).permutation(1000) for epoch in range(2)]
    assert drawn == [str(i) for i in np.concatenate(shuffles)], (
        "the order of images must be the same as in earlier versions"
    )
    assert samples.order(1) is samples.order(1)
    assert [NumberedSamples(records, lambda r: r, seed=3)[i]["file_name"] for i in (1500, 20)] == [
        drawn[1500],
        drawn[20],
    ]


def test_images_are_decoded_once_while_they_fit(dubai, monkeypatch):
    record = records_of("dubai_train")[0]
    image, labels = read_image_and_labels(record)
    assert read_image_and_labels(record)[0] is image
    cache = read_image_and_labels.cache
    assert cache.currsize <= KEPT_BYTES == cache.maxsize
    small = byte_cache(image.nbytes + labels.nbytes + 1)
    small["a"], small["b"] = (image, labels), image[:1]
    assert list(small) == ["b"], "the cache has no room for both entries"


def test_signals_to_the_training_do_not_reach_its_loader_processes(dubai):
    """Loader processes have their own process group, so Ctrl-C does not reach them, and they block no signal."""
    loader = training_loader([{}], lambda record: group_and_mask(), batch=1, start=0, seed=0, workers=1)
    (sample,) = next(iter(loader))
    assert sample["group"] != os.getpgid(0)
    assert sample["held"] == []


def group_and_mask() -> dict:
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return {"group": os.getpgid(0), "held": [s.name for s in (signal.SIGINT, signal.SIGTERM) if s in held]}
