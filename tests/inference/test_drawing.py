"""Colours, overlays and legends."""

from __future__ import annotations

import numpy as np
import pytest

from skysense_o.inference.drawing import color_labels, colors_for, overlay, with_legend

RED = (200, 30, 10)


def test_colours_differ_even_for_hundreds_of_names():
    colors = colors_for([f"thing {i}" for i in range(300)])
    assert len(set(colors)) == 300
    assert colors_for(["water", "road"])[0] == (38, 120, 226)


def test_overlay_keeps_red_red_and_marks_borders():
    image, labels = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.int64)
    labels[:, 4:] = 1
    laid = overlay(image, labels, [RED, (0, 0, 250)])
    assert laid[0, 0].tolist() == [150, 65, 55]
    assert laid[0, 4].tolist() == [0, 0, 250]
    assert color_labels(labels, [RED, (0, 0, 250)])[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("size", [(4, 4), (60, 1200), (900, 300)])
def test_the_legend_covers_no_pixel_of_the_image(size):
    image = np.full((*size, 3), 7, np.uint8)
    names = ["a rather long name of a class", "b", "c", "d", "e"]
    sheet = np.asarray(with_legend(image, names, colors_for(names), [0.2] * 5))
    assert (sheet[: size[0], : size[1]] == 7).all()
    assert sheet.shape[0] > size[0]
