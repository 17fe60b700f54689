"""Tests that a box selects the region of the label maps that the user meant."""

from __future__ import annotations

import numpy as np
import pytest

from skysense_o.box_regions import BoxRegions

ROAD, ROOF, TREE = 0, 1, 2


@pytest.fixture
def labels() -> np.ndarray:
    """Return a label map: a road across grass (label 3), and on it a roof of 10 x 8 pixels, partly under a tree."""
    labels = np.full((40, 40), 3, np.uint8)
    labels[14:26] = ROAD
    labels[16:24, 15:25] = ROOF
    labels[20:24, 15:18] = TREE
    labels[2:6, 2:6] = ROOF
    return labels


def test_the_region_that_reaches_the_sides_is_meant_and_not_what_goes_on_outside(labels):
    mask = BoxRegions([labels]).mask((15, 16, 25, 24))
    assert (mask == (labels == ROOF) & (np.arange(40) > 10)).all()
    mask = BoxRegions([labels]).mask((13, 15, 27, 25))
    assert mask.sum() == 10 * 8 - 12, (
        "the road has more pixels in this loose box, but continues outside, so the roof is meant"
    )


def test_a_box_around_all_of_a_region_with_another_one_inside(labels):
    mask = BoxRegions([labels]).mask((0, 14, 40, 26))
    assert (mask == (labels == ROAD)).all()


def test_the_map_whose_region_fits_better_decides(labels):
    coarse = (labels == TREE).astype(np.uint8)
    coarse[14:20, 30:36] = 2
    mask = BoxRegions([labels, coarse]).mask((30, 14, 36, 20))
    assert (mask == (coarse == 2)).all()


def test_a_box_may_have_fractions_of_pixels(labels):
    assert BoxRegions([labels]).mask((15.2, 16.4, 24.5, 23.5)).sum() == 10 * 8 - 12


def test_maps_may_be_smaller_than_the_image(labels):
    mask = BoxRegions([labels], (120, 80)).mask((30, 48, 50, 72))
    assert mask.shape == (120, 80)
    assert (mask == np.kron((labels == ROOF) & (np.arange(40) > 10), np.ones((3, 2), bool))).all()


def test_regions_far_smaller_than_the_box_are_no_candidates():
    labels = np.zeros((64, 64), np.uint8)
    labels[:, :32] = 1
    labels[0, 0] = labels[63, 63] = 2  # fills the whole box, but with two pixels
    assert BoxRegions([labels]).mask((0, 0, 64, 64)).sum() > 2000


def test_every_box_has_a_region():
    labels = (np.arange(64 * 64).reshape(64, 64) % 100).astype(np.uint8)
    assert BoxRegions([labels]).mask((0, 0, 64, 64)).sum() == 41, "of many small classes one of the largest is taken"
    assert BoxRegions([labels]).mask((5, 5, 5 + 1e-9, 9)).sum() == 1
