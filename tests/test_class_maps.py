"""Tests of clicks and boxes that also use class probabilities."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import torch
import torch.nn.functional as F

from skysense_o.class_maps import KEPT, REMEMBERED, WINDOW, ClassMaps
from skysense_o.geometry import ImageTransform
from skysense_o.renamed_keys import with_new_names

SIDE = 64  # of the image; the grid has a quarter of it
HALF = SIDE // 8


class Made(ClassMaps):
    """An image whose left half is water and whose right half is road.

    `drawn` is what the decoder answers, `change` is what the network adds to a mask.
    """

    def __init__(self, drawn: float | torch.Tensor = 0.0, change: float | torch.Tensor = 0.0, side: int = SIDE) -> None:
        self.asked, self.corrections, self.drawn, self.change = [], [], drawn, change
        super().__init__(self.probabilities, ImageTransform(*[(side, side)] * 3))

    def probabilities(self, vocabulary) -> torch.Tensor:
        cells = self.transform.padded[0] // 4
        found = torch.full((len(vocabulary), cells, cells), 0.02)
        found[vocabulary.classes.index("water" if "water" in vocabulary.classes else "sea"), :, : cells // 2] = 0.9
        found[vocabulary.classes.index("road"), :, cells // 2 :] = 0.9
        return found

    def answer(self, clicks, box):
        self.asked.append((tuple(clicks), tuple(box)))
        return torch.zeros(self.transform.padded[0] // 4, self.transform.padded[0] // 4) + self.drawn

    def correct(self, window, class_maps, mask, points, labels, boxes):
        self.corrections.append((window, class_maps, mask, points, labels, boxes))
        change = self.change if isinstance(self.change, float) else self.change[window]
        return mask + change


def mask(maps: ClassMaps, *clicks, box=()) -> torch.Tensor:
    return maps.logits(clicks, box, maps.answer, maps.correct) > 0


def test_the_first_click_means_the_class_under_it_even_if_the_decoder_does_not_know():
    left = mask(Made(), (10, 30, 1))
    assert left[:, :HALF].all()
    assert not left[:, HALF:].any()
    assert mask(Made(drawn=20.0), (10, 30, 1)).all(), "a decoder that is sure decides"
    assert mask(Made(drawn=-20.0), (10, 30, 1)).sum() == 9, "only the clicked cell and its neighbours"


def test_the_network_corrects_the_mask_of_the_first_click_and_of_each_further_one():
    maps = Made()
    maps.change = torch.zeros(SIDE // 4, SIDE // 4)
    maps.change[:, HALF : HALF + 2] = 20.0
    grown = mask(maps, (10, 30, 1))
    assert grown[:, : HALF + 2].all()
    assert not grown[:, HALF + 2 :].any()
    maps.change[:, HALF : HALF + 2] = -40.0
    assert torch.equal(mask(maps, (10, 30, 1), (38, 30, 0)), mask(Made(), (10, 30, 1)))


def test_a_foreground_click_only_adds_and_a_background_click_only_removes():
    maps = Made()
    before = mask(maps, (10, 30, 1))
    maps.change = 40.0
    less = mask(maps, (10, 30, 1), (50, 50, 0))
    assert not (less & ~before).any()
    maps.change = -40.0
    more = mask(maps, (10, 30, 1), (10, 50, 1))
    assert not (before & ~more).any()


def test_what_the_network_is_told_of_a_prompt():
    maps = Made()
    mask(maps, (10, 30, 1), (60, 50, 0), box=(4, 8, 64, 64))
    window, shares, before, points, labels, boxes = maps.corrections[-1]
    assert window == (slice(0, SIDE // 4), slice(0, SIDE // 4))
    assert before.shape == (1, SIDE // 4, SIDE // 4)
    assert points.tolist() == [[[2, 7], [15, 12]]]
    assert labels.tolist() == [[1, 0]]
    assert boxes.tolist() == [[1, 2, 16, 16]]
    for inside, whole in zip(shares, maps.maps):
        torch.testing.assert_close(inside[0], whole.float(), msg="the grid of the class maps is the grid of the mask")


def test_with_clicks_inside_it_a_box_bounds_the_mask():
    maps = Made(change=20.0)
    found = mask(maps, (20, 20, 1), box=(8, 8, 32, 40))
    assert found[2:10, 2:8].all()
    assert found.sum() == 8 * 6
    without = mask(maps, (20, 20, 1), (50, 50, 1), box=(8, 8, 32, 40))
    assert without.all(), "a foreground click outside of the box opens it"
    assert maps.corrections[-1][5].isnan().all(), "so the network is not told of the box"


def test_a_box_without_clicks_is_not_corrected():
    maps = Made(change=20.0)
    found = maps.logits((), (8, 8, 32, 40), maps.answer, maps.correct)
    assert not maps.corrections
    assert (found > 0).sum() == 8 * 6


def test_only_parts_with_a_foreground_click_stay():
    maps = Made(drawn=-20.0)
    maps.change = torch.zeros(SIDE // 4, SIDE // 4)
    maps.change[1:4, 12:15] = 20.0
    assert not mask(maps, (10, 30, 1))[1:4, 12:15].any()
    assert mask(maps, (10, 30, 1), (54, 10, 1))[1:4, 12:15].all()
    assert mask(maps, (10, 30, 1), box=(0, 0, SIDE, SIDE))[1:4, 12:15].all(), "a box may mean several parts"


def test_a_small_mask_in_a_large_image_is_corrected_around_it():
    side = 8 * WINDOW
    cells = side // 4
    drawn = torch.full((cells, cells), -100.0)
    drawn[5:9, cells - 12 : cells - 6] = 100.0
    maps = Made(drawn, change=20.0, side=side)
    found = maps.logits([(side - 30, 30, 1)], (), maps.answer, maps.correct)
    window, shares, _, points, *_ = maps.corrections[0]
    assert window == (slice(0, WINDOW), slice(cells - WINDOW, cells))
    assert points.tolist() == [[[WINDOW - 8, 7]]]
    assert all(x.shape[-2:] == (WINDOW, WINDOW) for x in shares)
    assert shares[0].argmax(1).unique().tolist() == [2], "it is all road there"
    still = Made(drawn, side=side)
    changed = found != still.logits([(side - 30, 30, 1)], (), still.answer, still.correct)
    assert changed[window].any()
    assert not changed[WINDOW:].any()


def test_a_large_mask_is_corrected_in_larger_cells():
    side = 8 * WINDOW
    maps = Made(drawn=20.0, change=3.0, side=side)
    found = maps.logits([(30, 30, 1), (side - 30, side - 30, 0)], (), maps.answer, maps.correct)
    window, shares, mask, points, labels, _ = maps.corrections[-1]
    assert window == (slice(0, side // 4), slice(0, side // 4))
    assert mask.shape == (1, WINDOW, WINDOW), "half as many cells a side as in the mask grid"
    assert all(x.shape[-2:] == (WINDOW, WINDOW) for x in shares)
    assert points.tolist() == [[[3, 3], [WINDOW - 4, WINDOW - 4]]]
    assert labels.tolist() == [[1, 0]]
    assert shares[0][0, 0, :, : WINDOW // 2 - 1].min() > 0.8
    assert found.isfinite().all()
    assert found[10, 200] > 20


def test_cells_grow_with_the_mask_without_a_jump():
    side = 4 * (WINDOW + 2)
    maps = Made(drawn=20.0, side=side)
    maps.logits([(30, 30, 1)], (), maps.answer, maps.correct)
    window, _, reduced, *_ = maps.corrections[0]
    assert window == (slice(0, side // 4), slice(0, side // 4))
    assert reduced.shape == (1, WINDOW, WINDOW)


def test_clicks_of_both_kinds_side_by_side():
    maps = Made(drawn=20.0)
    for apart in (1, 3, 5, 8):
        found = mask(maps, (30, 30, 1), (30 + apart, 30, 0))
        assert found.float().mean() > 0.9, "the background click must not remove the mask"


def test_the_clicked_pixel_always_follows_the_click():
    def at_full_size(maps: ClassMaps, *clicks) -> torch.Tensor:
        logits = maps.logits(clicks, (), maps.answer, maps.correct)
        return F.interpolate(logits[None, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0] > 0

    maps = Made(100.0)
    assert at_full_size(maps, (10, 30, 1)).all()
    corrected = at_full_size(maps, (10, 30, 1), (12, 12, 0))
    assert not corrected[12, 12], "although the decoder, the class maps and the network are against it"
    assert corrected.float().mean() > 0.95
    nothing = at_full_size(Made(-100.0, change=-100.0), (10, 30, 1))
    assert nothing[30, 10]
    assert 0 < nothing.float().mean() < 0.05


def test_a_mask_starts_with_a_foreground_click_whatever_the_order():
    maps = Made()
    one, other = mask(maps, (60, 30, 0), (10, 30, 1)), mask(maps, (10, 30, 1), (60, 30, 0))
    assert torch.equal(one, other)
    assert one[:, :HALF].all()


def test_only_new_clicks_are_corrected():
    maps, clicks = Made(), [(10, 30, 1), (60, 30, 0), (5, 5, 1), (50, 9, 0), (40, 3, 0), (9, 60, 1)]
    for count in range(1, len(clicks) + 1):
        mask(maps, *clicks[:count])
    assert len(maps.asked) == 1, "the decoder draws the first mask only"
    assert len(maps.corrections) == len(clicks)
    mask(maps, *clicks)
    mask(maps, *clicks[:-1])
    assert len(maps.corrections) == len(clicks), "a repeated prompt, and undo, compute nothing"
    for x in range(3 * KEPT):  # previews of a further click, wherever the pointer rests
        mask(maps, *clicks, (x, 40, 1))
    assert len(maps.corrections) == len(clicks) + 3 * KEPT, "previews must not push out the prompt that they extend"
    assert len(maps._recent) == KEPT
    assert sum(array.nbytes for array in maps.arrays) < 1 << 20


def test_hundreds_of_clicks():
    maps = Made()
    clicks = [(10, 30, 1), *((x % SIDE, x // SIDE, x % 2) for x in range(600))]
    found = maps.logits(clicks, (), maps.answer, maps.correct)
    assert found.isfinite().all()
    assert maps.corrections[-1][4].shape == (1, REMEMBERED)


def test_an_image_is_freed_without_the_garbage_collector(mini):
    image = mini.set_image(np.zeros((64, 64, 3), np.uint8))
    image.prompt([(30, 30)], [1])
    freed = weakref.ref(image.class_maps)
    gc.disable()
    try:
        del image
        assert freed() is None, "a cycle of references would keep the features of images on a GPU"
    finally:
        gc.enable()


def test_the_shipped_weights_use_class_maps_and_know_kinds(mini):
    assert mini.model.class_maps
    assert "tree" in mini.model.kinds.wider["forest"]


def test_weights_with_the_old_name_of_the_key_are_read():
    assert with_new_names({"MODEL": {"SEM_SEG_HEAD": {"BOX_REGIONS": True}}}) == {
        "MODEL": {"SEM_SEG_HEAD": {"CLASS_MAPS": True}}
    }
