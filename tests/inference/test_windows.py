"""Tests of sliding windows: each pixel gets one label, without seams, and equal to that of the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skysense_o.inference.blending import Band, WindowRow, reflected, resolve, run_windows
from skysense_o.inference.sliding import plan_windows, segment_array
from skysense_o.inference.windows import Axis, Plan
from skysense_o.vocabulary import Vocabulary

SIZES = [(64, 64), (1, 200), (17, 301), (130, 129), (96, 1)]


class Local:
    """A model whose cells depend on their own 4 x 4 pixels only, so windows and the whole image agree."""

    stride, device = 4, torch.device("cpu")

    class tower:
        input_size, divisor = None, 32

    def __init__(self, names: int) -> None:
        self.mixing = torch.randn(names, 3, generator=torch.Generator().manual_seed(0))
        self.calls = []

    def predict_windows(self, windows, vocabulary=None):
        self.calls.append(tuple(windows.shape))
        cells = F.avg_pool2d(windows.float() / 255, 4)
        return torch.einsum("cd,bdhw->bchw", self.mixing, cells).mul(6).sigmoid()


def random_image(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def words(count):
    return Vocabulary.of([f"thing {i}" for i in range(count)])


def whole(model, image):
    """Naive reference: run the model on the whole image, padded by reflection, and resize with torch."""
    h, w = image.shape[-2:]
    y, x = reflected(h, 0, -(-h // 32) * 32), reflected(w, 0, -(-w // 32) * 32)
    grid = model.predict_windows(image[:, y][:, :, x][None])
    return F.interpolate(grid, scale_factor=4, mode="bilinear", align_corners=False)[0, :, :h, :w]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 32])
def test_a_local_model_tiled_equals_whole(size, overlap):
    model, image = Local(7), random_image(*size)
    labels, score = segment_array(image, words(7), model, window=64, overlap=overlap)
    assert all(shape[-2] <= 64 and shape[-1] <= 64 for shape in model.calls)
    best, index = whole(model, image).max(dim=0)
    assert np.abs(score - best.numpy()).max() < 1e-5
    differ = labels != index.numpy()
    margins = whole(model, image).topk(2, dim=0).values
    assert (margins[0] - margins[1]).numpy()[differ].max(initial=0) < 1e-5, (
        "labels may differ only where two classes have nearly equal logits"
    )


def test_narrow_strips_give_the_same_as_one_strip():
    model, image = Local(5), random_image(150, 1300)
    once = segment_array(image, words(5), model, window=64, overlap=32)
    plan = plan_windows(model, (150, 1300), 5, 64, 32, memory=2**18)
    assert len(plan.strips) == 3
    strips = segment_array(image, words(5), model, window=64, overlap=32, memory=2**18)
    assert np.array_equal(once[0], strips[0])
    assert np.abs(once[1] - strips[1]).max() < 1e-6


def test_starting_at_any_row_gives_identical_values():
    """A run that starts at any row gives the same values from this row on, so interrupted runs can resume."""
    model, image = Local(5), random_image(300, 200)
    plan = plan_windows(model, (300, 200), 5, 64, 32)
    pad = F.pad(image.float(), (0, 32, 0, 32), mode="reflect").to(torch.uint8)

    def load(k):
        top = plan.rows.starts[k]
        return WindowRow(pad[:, top : top + 64], (True,) * len(plan.cols.starts))

    def make(begin):
        out = torch.full((300, 200), -1.0)
        run_windows(
            plan,
            range(200),
            range(begin, 300),
            load,
            model.predict_windows,
            lambda r, c, _, s: out[r.start : r.stop].copy_(s),
        )
        return out

    all_rows = make(0)
    assert (all_rows >= 0).all()
    for begin in (1, 63, 96, 200, 299):
        part = make(begin)
        assert (part[:begin] == -1).all()
        assert torch.equal(part[begin:], all_rows[begin:])


@pytest.mark.parametrize(
    ("length", "window", "overlap"), [(1000, 128, 32), (1000, 128, 0), (100, 128, 64), (129, 128, 96)]
)
def test_the_weights_of_each_cell_sum_to_one(length, window, overlap):
    axis = Axis.plan(length, length, window, overlap, 32, 4)
    total = torch.zeros(axis.cells)
    for start, weight in zip(axis.starts, axis.weights):
        assert (weight > 0).all()
        total[start // 4 :][: len(weight)] += weight
    assert torch.allclose(total, torch.ones(axis.cells), atol=1e-6)
    assert axis.starts[-1] + axis.window - length < 32
    assert all(b - a <= window - overlap for a, b in zip(axis.starts, axis.starts[1:]))


def test_weights_rise_over_the_overlap_like_a_hann_window():
    axis = Axis.plan(224, 224, 128, 32, 32, 4)
    assert axis.starts == (0, 96)
    ramp = axis.weights[1][:8]
    expected = torch.sin((torch.arange(8) + 0.5) / 8 * torch.pi / 2) ** 2
    assert torch.allclose(ramp, expected, atol=1e-6)
    assert (axis.weights[1][8:] == 1).all()


@pytest.mark.parametrize("target", [(60, 90), (120, 180), (37, 55)])
def test_labels_between_cells_are_bilinear_then_the_best_class(target):
    """Labels and scores equal the best class of torch's bilinear interpolation, also at other target sizes."""
    grid = torch.rand(15, 23, 6, generator=torch.Generator().manual_seed(1))
    plan = Plan.of((60, 90), window=64, overlap=0, divisor=32, stride=4, num_classes=6, memory=2**30, target=target)
    grid = F.pad(grid, (0, 0, 0, plan.cols.cells - 23, 0, plan.rows.cells - 15), value=0.5)
    labels, score = resolve(Band(range(target[0]), grid, 0), plan, range(target[1]))
    rows, cols = plan.rows.cells * 4 * target[0] / 60, plan.cols.cells * 4 * target[1] / 90
    y, x = ((torch.arange(n) + 0.5) * (2 / whole) - 1 for n, whole in zip(target, (rows, cols)))
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    full = F.grid_sample(grid.permute(2, 0, 1)[None], places, padding_mode="border", align_corners=False)[0]
    best, index = full.max(dim=0)
    assert torch.allclose(score, best, atol=1e-5)
    assert (labels == index).float().mean() > 0.999


def test_tiny_images_are_reflected():
    assert reflected(1, 0, 4).tolist() == [0, 0, 0, 0]
    assert reflected(3, 0, 8).tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 100}, "a window of 100 pixels does not fit the model: give a multiple of 32"),
        ({"window": 64, "overlap": 64}, "an overlap of 64 pixels is out of range: 0 to 32"),
        (
            {"window": 512, "memory": 2**20},
            "too few to blend 300 classes in windows of 512: give at least 86 MiB",
        ),
    ],
)
def test_windows_that_do_not_fit_are_errors(options, says):
    with pytest.raises(ValueError, match=says):
        plan_windows(Local(300), (2000, 2000), 300, **options)


def test_a_tower_with_a_fixed_input_size_takes_windows_of_that_size():
    model = Local(3)
    model.tower = type("T", (), {"input_size": 48, "divisor": 32})
    labels, _ = segment_array(random_image(70, 30), words(3), model)
    assert labels.shape == (70, 30)
    assert {shape[-2:] for shape in model.calls} == {(48, 48)}
    with pytest.raises(ValueError, match="a window of 64 pixels does not fit the model: it takes 48 pixels only"):
        plan_windows(model, (70, 30), 3, window=64)


def test_the_model_whole_and_in_windows_agree_inside(small_model):
    """With the small model, one window that covers the image gives the same as the whole image."""
    image, vocabulary = random_image(64, 96), words(4)
    labels, score = segment_array(image, vocabulary, small_model, window=96)
    expected = small_model.predict([{"image": image, "vocabulary": vocabulary}], "labels")[0]
    assert np.abs(score - expected["score"].numpy()).max() < 1e-5
    assert (labels == expected["labels"].numpy()).mean() > 0.999


def test_the_published_model_takes_windows_of_its_input_size():
    """With the published model, one window of its input size gives the same as the whole image."""
    from modeling.test_published import build

    model = build().eval()
    side = model.tower.input_size
    image, vocabulary = random_image(side, side), words(5)
    labels, score = segment_array(image, vocabulary, model)
    expected = model.predict([{"image": image, "vocabulary": vocabulary}], "labels")[0]
    assert np.abs(score - expected["score"].numpy()).max() < 1e-5
    assert (labels == expected["labels"].numpy()).mean() > 0.999
    labels, _ = segment_array(random_image(side + 40, 2 * side), vocabulary, model)
    assert labels.shape == (side + 40, 2 * side)
