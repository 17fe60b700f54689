"""Tests of clicks and boxes that also use class probabilities."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import torch
import torch.nn.functional as F

from skysense_o.geometry import ImageTransform
from skysense_o.inference.class_maps import FAR, KEPT, ClassMaps
from skysense_o.renamed_keys import with_new_names

SIDE = 64  # of the image; the grid has a quarter of it
HALF = SIDE // 8


class Made(ClassMaps):
    """An image whose left half is water and whose right half is road; `drawn` is what the decoder answers."""

    def __init__(self, drawn: float | torch.Tensor = 0.0) -> None:
        self.asked, self.drawn = [], drawn
        super().__init__(self.probabilities, ImageTransform(*[(SIDE, SIDE)] * 3))

    def probabilities(self, vocabulary) -> torch.Tensor:
        found = torch.full((len(vocabulary), SIDE // 4, SIDE // 4), 0.02)
        found[vocabulary.classes.index("water" if "water" in vocabulary.classes else "sea"), :, :HALF] = 0.9
        found[vocabulary.classes.index("road"), :, HALF:] = 0.9
        return found

    def answer(self, clicks, box):
        self.asked.append((tuple(clicks), tuple(box)))
        return torch.zeros(SIDE // 4, SIDE // 4) + self.drawn


def mask(maps: ClassMaps, *clicks, box=()) -> torch.Tensor:
    return maps.logits(clicks, box, maps.answer) > 0


def test_the_first_click_means_the_class_under_it_even_if_the_decoder_does_not_know():
    left = mask(Made(), (10, 30, 1))
    assert left[:, :HALF].all()
    assert not left[:, HALF:].any()
    assert mask(Made(drawn=20.0), (10, 30, 1)).all(), "a decoder that is sure decides"
    assert mask(Made(drawn=-20.0), (10, 30, 1)).sum() == 9, "only the clicked cell and its neighbours"


def test_a_background_click_takes_the_part_around_it_and_leaves_the_rest():
    drawn = torch.full((SIDE // 4, SIDE // 4), 20.0)
    maps = Made(drawn)
    assert mask(maps, (10, 30, 1)).all()
    maps.drawn = drawn.clone()
    maps.drawn[:, HALF + 2 :] = -20  # now the decoder gives up these columns, a strip of road
    corrected = mask(maps, (10, 30, 1), (60, 30, 0))
    assert corrected[:, : HALF + 2].all()
    assert not corrected[:, HALF + 2 :].any()


def test_a_correction_changes_only_what_is_connected_to_the_click():
    maps = Made(20.0)
    mask(maps, (10, 30, 1))
    maps.drawn = torch.full((SIDE // 4, SIDE // 4), 20.0)
    maps.drawn[:3, HALF:] = maps.drawn[-3:, HALF:] = -20.0  # it gives up two corners, and the click is in one of them
    corrected = mask(maps, (10, 30, 1), (60, 2, 0))
    assert not corrected[:3, HALF:].any()
    assert corrected[-3:, HALF:].all()


def test_a_correction_keeps_what_was_clicked():
    maps = Made(20.0)
    mask(maps, (30, 30, 1))
    maps.drawn = -100.0
    corrected = mask(maps, (30, 30, 1), (12, 30, 0))
    assert corrected[7, 7], "the place of the first click"
    assert corrected.sum() == 9


def test_far_cells_need_more_evidence():
    maps = Made(20.0)
    assert mask(maps, (5, 60, 1)).all()
    maps.drawn = -2.0 * FAR  # both clicks are in water, so the class maps say nothing, and the decoder is against all
    corrected = mask(maps, (5, 60, 1), (21, 30, 0))
    cells = torch.arange(SIDE // 4) * 4 + 2
    distance = torch.hypot(cells[:, None] - 30.0, cells[None] - 21.0)
    assert torch.equal(corrected, distance >= 0.2 * SIDE), "twice the evidence reaches two tenths of the side"


def test_a_correction_has_a_smooth_border():
    maps = Made(20.0)
    mask(maps, (5, 60, 1))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    slope = (
        torch.from_numpy((x - 0.6 * y).astype(np.float32)) - 4
    )  # the decoder gives up what lies above a slanted line
    maps.drawn = -F.avg_pool2d(slope[None], 4)[0] * 2
    corrected = maps.logits([(5, 60, 1), (24, 4, 0)], (), maps.answer)
    full = F.interpolate(corrected[None, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0] > 0
    distance = torch.from_numpy(np.hypot(x - 24, y - 4).astype(np.float32)) * (10 / SIDE)
    expected = 2 * slope <= FAR * distance
    both_water = slice(0, SIDE // 2 - 4)  # there the class maps say nothing
    assert (full != expected)[:, both_water].float().mean() < 0.01


def test_a_correction_takes_the_crumbs_that_it_cuts_off():
    maps = Made(20.0)
    boxed = (0, 0, SIDE, SIDE)
    mask(maps, (10, 30, 1), (50, 30, 1), box=boxed)
    maps.drawn = torch.full((SIDE // 4, SIDE // 4), -100.0)
    maps.drawn[2:4, HALF + 5 : HALF + 7] = 100.0  # four cells
    maps.drawn[10:13, HALF + 3 : HALF + 5] = 100.0  # six cells
    corrected = mask(maps, (10, 30, 1), (50, 30, 1), (60, 60, 0), box=boxed)
    assert not corrected[:5, HALF:].any()
    assert corrected[10:13, HALF + 3 : HALF + 5].all()
    assert corrected[7, 12], "the place of a click"


def test_the_clicked_pixel_always_follows_the_click():
    def at_full_size(maps: ClassMaps, *clicks) -> torch.Tensor:
        logits = maps.logits(clicks, (), maps.answer)
        return F.interpolate(logits[None, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0] > 0

    maps = Made(100.0)
    assert at_full_size(maps, (10, 30, 1)).all()
    corrected = at_full_size(maps, (10, 30, 1), (12, 12, 0))
    assert not corrected[12, 12], "although the decoder and the class maps are against it"
    assert corrected.float().mean() > 0.95
    nothing = at_full_size(Made(-100.0), (10, 30, 1))
    assert nothing[30, 10]
    assert 0 < nothing.float().mean() < 0.05


def test_a_mask_starts_with_a_foreground_click_whatever_the_order():
    maps = Made()
    one, other = mask(maps, (60, 30, 0), (10, 30, 1)), mask(maps, (10, 30, 1), (60, 30, 0))
    assert torch.equal(one, other)
    assert one[:, :HALF].all()


def test_a_click_after_a_box_corrects_the_region_of_the_box():
    maps = Made()
    boxed = mask(maps, (10, 30, 1), box=(0, 0, 32, 64))
    assert boxed[:, :HALF].all()
    assert not boxed[:, HALF:].any()
    maps.drawn = 20.0
    more = mask(maps, (10, 30, 1), (40, 30, 1), box=(0, 0, 32, 64))
    assert more[HALF, HALF + 2]
    assert more[:, :HALF].all()


def test_the_decoder_is_asked_once_per_new_click():
    maps, clicks = Made(), [(10, 30, 1), (60, 30, 0), (5, 5, 1), (50, 9, 0), (40, 3, 0), (9, 60, 1)]
    for count in range(1, len(clicks) + 1):
        mask(maps, *clicks[:count])
    assert len(maps.asked) == len(clicks)
    mask(maps, *clicks)
    mask(maps, *clicks[:-1])
    assert len(maps.asked) == len(clicks), "a repeated prompt, and undo, ask nothing"
    for x in range(3 * KEPT):  # previews of a further click, wherever the pointer rests
        mask(maps, *clicks, (x, 40, 1))
    assert len(maps.asked) == len(clicks) + 3 * KEPT, "previews must not push out the prompt that they extend"
    assert len(maps._recent) == KEPT
    assert sum(array.nbytes for array in maps.arrays) < 1 << 20


def test_hundreds_of_clicks():
    maps = Made()
    found = maps.logits([(10, 30, 1), *((x % SIDE, x // SIDE, x % 2) for x in range(600))], (), maps.answer)
    assert found.isfinite().all()


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
