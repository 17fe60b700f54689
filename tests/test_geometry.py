"""Tests that `restore` is the inverse of `prepare`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from skysense_o import geometry
from skysense_o.geometry import best_of_phrases, image_transform_for, prepare


def tower(input_size=None, divisor=32):
    return SimpleNamespace(
        pixel_mean=torch.full((3, 1, 1), 100.0),
        pixel_std=torch.full((3, 1, 1), 50.0),
        input_size=input_size,
        divisor=divisor,
    )


def peak(image: torch.Tensor) -> tuple[int, int]:
    y, x = divmod(int(image.argmax()), image.shape[-1])
    return y, x


SIZES = [(37, 53), (101, 67), (64, 96), (1, 200), (133, 31)]


@pytest.mark.parametrize("size", SIZES)
def test_a_pixel_keeps_its_position(size):
    """A pixel keeps its position; the published code does not remove its padding, so pixels move by up to 31 pixels."""
    for mark in {(0, 0), (size[0] // 2, size[1] // 3), (size[0] - 1, size[1] - 1)}:
        image = torch.zeros(3, *size, dtype=torch.uint8)
        image[:, mark[0], mark[1]] = 255
        x, (transform,) = prepare([image], tower())
        back = transform.restore(x[0, :1], [0], 1, reduce="probabilities")["sem_seg"][0]
        assert back.shape == size
        assert peak(back) == mark


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("input_size", [None, 192])
def test_a_blob_keeps_its_centre_through_a_coarse_grid(size, input_size):
    ys, xs = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    cy, cx = size[0] * 0.6, size[1] * 0.7
    blob = torch.exp(-((ys + 0.5 - cy) ** 2 + (xs + 0.5 - cx) ** 2) / 60)
    x, (transform,) = prepare([(255 * blob).byte().expand(3, -1, -1)], tower(input_size))
    grid = F.avg_pool2d((x[0, :1] * 50 + 100) / 255, 4)
    back = transform.restore(torch.logit(grid, 1e-6), [0], 1, reduce="probabilities")["sem_seg"][0]
    weight = torch.where(back > 0.2, back, 0)
    centre = ((ys + 0.5) * weight).sum() / weight.sum(), ((xs + 0.5) * weight).sum() / weight.sum()
    assert centre[0] == pytest.approx(cy, abs=0.7)
    assert centre[1] == pytest.approx(cx, abs=0.7)


def test_points_follow_the_squeeze():
    transform = image_transform_for((100, 140), tower(input_size=384))
    corner = transform.points(torch.tensor([[-0.5, -0.5], [159.5, 127.5]]))
    assert torch.allclose(corner, torch.tensor([[-0.5, -0.5], [383.5, 383.5]]))


def test_padding_is_the_mean_colour():
    x, (transform,) = prepare([torch.full((3, 5, 7), 200, dtype=torch.uint8)], tower())
    assert x.shape == (1, 3, 32, 32)
    assert (x[..., :5, :7] == 2).all()
    assert x[..., 5:, :].abs().max() == 0
    assert transform.size == (5, 7)


@pytest.mark.parametrize("size", [(45, 61), (90, 122), (31, 40)])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("memory", [1, geometry.RESTORE_BYTES])  # one class at a time, and all classes at once
def test_labels_equal_those_of_all_probabilities_at_full_size(monkeypatch, size, compat, memory):
    """Labels equal the best class at full size, although most pixels are computed for one class only."""
    torch.manual_seed(0)
    transform = image_transform_for((45, 61), tower())
    logits, phrase_to_class = torch.randn(9, 16, 16), [0, 0, 1, 2, 2, 2, 3, 4, 5]
    logits[:3, 4:9] += 6  # these cells all have the same class
    whole = transform.restore(logits, phrase_to_class, 6, size, "probabilities", compat)["sem_seg"]
    monkeypatch.setattr(geometry, "RESTORE_BYTES", memory)
    parts = transform.restore(logits, phrase_to_class, 6, size, "labels", compat)
    score, _ = whole.max(0)
    assert parts["labels"].dtype == torch.int64
    assert torch.allclose(parts["score"], score, atol=1e-6)
    # The label's probability equals the highest one up to rounding.
    assert torch.allclose(whole.gather(0, parts["labels"][None])[0], score, atol=1e-6)


def test_probabilities_are_restored_as_logits_are():
    torch.manual_seed(0)
    transform, logits, phrases = image_transform_for((45, 61), tower()), torch.randn(4, 16, 16), [0, 0, 1, 2]
    probabilities = best_of_phrases(logits.sigmoid(), phrases, 3)
    for size in (None, (20, 30)):
        from_logits = transform.restore(logits, phrases, 3, size)
        restored = transform.restore_probabilities(probabilities, size)
        assert torch.equal(from_logits["labels"], restored["labels"])
        assert torch.equal(from_logits["score"], restored["score"])
    whole = transform.restore_probabilities(probabilities, reduce="probabilities")["sem_seg"]
    assert torch.equal(whole, transform.restore(logits, phrases, 3, reduce="probabilities")["sem_seg"])


def test_synonyms_count_by_their_best():
    transform = image_transform_for((32, 32), tower())
    logits = torch.full((3, 8, 8), -2.0)
    logits[1] = 2.0
    out = transform.restore(logits, [0, 0, 1], 2, size=(10, 12), reduce="probabilities")["sem_seg"]
    assert out.shape == (2, 10, 12)
    assert torch.allclose(out[0], torch.tensor(2.0).sigmoid())
    assert torch.allclose(out[1], torch.tensor(-2.0).sigmoid())
