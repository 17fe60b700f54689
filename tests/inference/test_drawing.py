"""Tests of colours, overlays and legends."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from skysense_o.data.classes import CLASSES_FOLDER, load_classes
from skysense_o.inference import colors as colors_module
from skysense_o.inference.colors import (
    FEW,
    MIN_DIFFERENCE,
    NONE_COLOR,
    ciede2000,
    colors_for,
    is_water,
    lab_of,
    sea_blue,
)
from skysense_o.inference.drawing import MAX_IN_LEGEND, color_labels, overlay, with_legend
from skysense_o.inference.export import palette_of

RED = (200, 30, 10)


def smallest_difference(colors) -> float:
    pairs = itertools.combinations(lab_of(np.array(colors)), 2)
    return min(float(ciede2000(a, b)) for a, b in pairs)


def test_color_difference_equals_that_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).integers(0, 256, (2, 2000, 3))
    rgb[1, :50] = rgb[0, :50]
    rgb[0, 50:80] = rgb[0, 50:80, :1]  # grey colours, which have no hue
    lab = color.rgb2lab(rgb / 255)
    assert np.abs(lab_of(rgb) - lab).max() < 1e-3
    assert np.abs(ciede2000(*lab) - color.deltaE_ciede2000(*lab)).max() < 1e-9


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (50, 3.1736, 0.5854), 1.0),
        ((0, 0, 0), (100, 0, 0), 100.0),
    ],
)
def test_color_difference_equals_published_values(first, second, difference):
    """The first four colour pairs and their differences are from the test data of Sharma et al. (2005)."""
    assert float(ciede2000(np.array(first), np.array(second))) == pytest.approx(difference, abs=1e-4)


def test_up_to_twelve_classes_can_be_told_apart():
    random.seed(0)
    customary = list(colors_module._CUSTOMARY)
    for _ in range(30):
        classes = random.sample(customary, random.randint(2, FEW))
        classes = [name if random.random() < 0.7 else f"thing {i}" for i, name in enumerate(classes)]
        given = [tuple(random.randint(0, 255) for _ in range(3)) for _ in classes]
        for colors in (colors_for(classes), colors_for(classes, given), palette_of(("none", *classes[1:]))):
            assert smallest_difference(colors) >= MIN_DIFFERENCE, classes


@pytest.mark.parametrize("name", sorted(path.stem for path in CLASSES_FOLDER.glob("*.json")))
def test_the_first_twelve_classes_of_each_table_can_be_told_apart(name):
    table = load_classes(name)
    colors = colors_for(table.classes, table.colors)
    assert len(set(colors)) == len(colors)
    assert len(table) == 1 or smallest_difference(colors[:FEW]) >= MIN_DIFFERENCE


def test_given_colors_stay_unless_they_are_too_similar():
    given = [(214, 48, 40), (38, 120, 226), (216, 50, 44)]
    colors = colors_for(["building", "water", "roof"], given)
    assert colors[:2] == given[:2]
    assert smallest_difference(colors) >= MIN_DIFFERENCE


def test_nothing_but_water_is_sea_blue_beside_water():
    given = [(30, 100, 220), (20, 84, 190), (200, 30, 10)]
    colors = colors_for(["road", "lake", "house"], given)
    assert colors[1:] == given[1:]
    assert not sea_blue(np.array(colors[0]))
    assert colors_for(["road", "house"], given[::2]) == given[::2], "without a class water, any class may be blue"
    classes = ["water", *(f"thing {i}" for i in range(11))]
    colors = colors_for(classes)
    assert [bool(sea_blue(np.array(color))) for color in colors] == [True, *[False] * 11]
    waters = ["water", "lake", "swimming pool", "road"]
    assert sea_blue(np.array(colors_for(waters))).tolist() == [is_water(name) for name in waters]


def test_colors_differ_even_for_hundreds_of_classes():
    colors = colors_for([f"thing {i}" for i in range(300)])
    assert len(set(colors)) == 300
    assert colors_for(["water", "road"])[0] == (38, 120, 226)


def test_of_many_classes_the_largest_can_be_told_apart():
    classes, shares = [f"thing {i}" for i in range(60)], [0.0] * 60
    for i in range(48, 60):
        shares[i] = 1 / 12
    palette = palette_of(("none", *classes), None, [0.0, *shares])
    assert palette[0] == NONE_COLOR
    assert smallest_difference([NONE_COLOR, *palette[49:]]) >= MIN_DIFFERENCE
    assert len(set(palette)) == 61


def test_overlay_keeps_red_red_and_marks_borders():
    image, labels = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.int64)
    labels[:, 4:] = 1
    blended = overlay(image, labels, [RED, (0, 0, 250)])
    assert blended[0, 0].tolist() == [150, 65, 55]
    assert blended[0, 4].tolist() == [0, 0, 250]
    assert color_labels(labels, [RED, (0, 0, 250)])[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("size", [(4, 4), (60, 1200), (900, 300)])
def test_the_legend_covers_no_pixel_of_the_image(size):
    image = np.full((*size, 3), 7, np.uint8)
    names = ["a rather long name of a class", "b", "c", "d", "e"]
    sheet = np.asarray(with_legend(image, names, colors_for(names), [0.2] * 5))
    assert (sheet[: size[0], : size[1]] == 7).all()
    assert sheet.shape[0] > size[0]


@pytest.mark.parametrize("size", [(100, 100), (259, 312), (600, 200), (200, 2000)])
def test_the_legend_is_no_taller_than_the_image_and_shows_every_class(size):
    names = [f"class {i}" for i in range(MAX_IN_LEGEND)]
    colors = colors_for(names)
    sheet = np.asarray(with_legend(np.full((*size, 3), 7, np.uint8), names, colors, [1 / 30] * 30))
    assert sheet.shape[0] <= 2 * size[0]
    legend = {tuple(color) for color in sheet[size[0] :].reshape(-1, 3).tolist()}
    assert set(colors) <= legend
