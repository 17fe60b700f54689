"""Tests that the best class per pixel equals the best of all classes interpolated to full size."""

import pytest
import torch
import torch.nn.functional as F

from skysense_o import best_class as module
from skysense_o.best_class import best_class, interpolated_neighbors


@pytest.mark.parametrize("cells", [(5, 7), (1, 1), (9, 2)])
@pytest.mark.parametrize("everywhere", [False, True])
def test_labels_and_scores_are_those_of_a_full_size_interpolation(monkeypatch, cells, everywhere):
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 50)  # small limits, so that there are many steps
    monkeypatch.setattr(module, "MIXED_AT_ONCE", 7)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 300)
    torch.manual_seed(0)
    grid, size = torch.rand(*cells, 6), (23, 31)
    full = F.interpolate(grid.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0]
    score, labels = full.max(dim=0)
    y, x = (interpolated_neighbors(pixels, n, pixels) for pixels, n in zip(size, cells))
    # On a GPU, `best_class` calls `_best_everywhere`.
    got_labels, got_score = (module._best_everywhere if everywhere else best_class)(grid, y, x)
    assert got_labels.dtype == torch.int32
    assert torch.equal(got_labels.long(), labels)
    torch.testing.assert_close(got_score, score, atol=1e-6, rtol=0)
