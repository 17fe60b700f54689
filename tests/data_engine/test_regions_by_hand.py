"""Tests of regions that a user draws (their embedding, class scores and use as examples) and of automatic masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skysense_o.inference.automatic_masks import click_grid, generate_masks, stability
from skysense_o.vocabulary import Vocabulary

WORDS = Vocabulary.of(["water", "road|street", "tree"], ["sky"])


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def test_an_embedded_image_gives_the_same_result_as_a_new_one(mini, image, monkeypatch):
    seen, calls, encode = mini.set_image(image), [], mini.model.tower.encode_image
    monkeypatch.setattr(mini.model.tower, "encode_image", lambda x: calls.append(1) or encode(x))
    kept = mini(seen, WORDS, probabilities=True)
    assert calls == []
    new = mini(image, WORDS, probabilities=True)
    assert np.array_equal(kept.probabilities, new.probabilities)
    with pytest.raises(ValueError, match="is already encoded as a whole: leave out window"):
        mini(seen, WORDS, window=64)


def test_a_regions_embedding_is_the_mean_feature_of_its_pixels(mini, image):
    """A region's embedding is the normalised mean of the feature cells it covers; here it covers only whole cells."""
    seen = mini.set_image(image)
    mask = np.zeros((50, 70), bool)
    mask[16:48, 32:64] = True
    naive = F.normalize(seen.dense[0, :, 1:3, 2:4].mean((1, 2)), dim=0)
    torch.testing.assert_close(seen.embed(mask[None])[0], naive, atol=1e-5, rtol=0)


def test_regions_are_ranked_by_their_best_phrase(mini, image):
    seen = mini.set_image(image)
    box = seen.box_mask((16, 16, 48, 32))
    assert box.sum() == 32 * 16
    (ranked,) = seen.name(box[None], WORDS)
    assert {name for name, _ in ranked} == {"water", "road", "tree", "sky"}
    values = dict(ranked)
    assert list(values.values()) == sorted(values.values(), reverse=True)
    vector = seen.embed(box[None])[0]
    text, _ = mini.model.text_bank(mini.model.tower, [Vocabulary.of(["road", "street"])], mini.model.templates)
    best = (F.normalize(text[0].mean(1), dim=-1) @ vector).max()
    assert values["road"] == pytest.approx(float(best), abs=1e-4)


def test_an_example_region_segments_like_a_class(mini, image):
    """An example region whose embedding equals a class's text embedding gives the mask of that class.

    This holds for the example alone, together with other classes, and in sliding windows.
    """
    text, _ = mini.model.text_bank(mini.model.tower, [Vocabulary.of(["road"])], ["{}"])
    monkey = {"like this": text[0, 0, 0]}
    seen = mini.set_image(image)
    templates, mini.model.templates = mini.model.templates, ("{}",)
    try:
        word, example = Vocabulary.of(["water", "road"]), Vocabulary.of(["water"]).with_examples(monkey)
        for source, how in ((seen, {}), (image, {"window": 64})):
            a, b = mini(source, word, **how), mini(source, example, **how)
            assert np.array_equal(a.labels, b.labels)
            assert b.classes == ("water", "like this")
        alone = mini(seen, Vocabulary((), (), ()).with_examples(monkey))
        assert np.array_equal(alone.labels, mini(seen, "road").labels)
    finally:
        mini.model.templates = templates
    with pytest.raises(ValueError, match=r"\['Road'\] are already phrases of this vocabulary"):
        word.with_examples({"Road": monkey["like this"]})


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (np.ones((1, 9, 9), bool), r"shape \(1, 9, 9\) do not fit the image: expected \(K,50,70\)"),
        (np.zeros((1, 50, 70), bool), "a region is empty"),
    ],
)
def test_invalid_region_masks_raise_an_error(mini, image, masks, says):
    with pytest.raises(ValueError, match=says):
        mini.set_image(image).embed(masks)


def test_clicks_are_spread_evenly():
    grid = click_grid((50, 100), 4)
    assert grid.tolist() == [[x, y] for y in (12, 37) for x in (12, 37, 62, 87)]
    assert click_grid((3, 900), 9).shape == (9, 2)
    with pytest.raises(ValueError, match="side 0 is out of range"):
        click_grid((50, 100), 0)


def test_stability_score_is_the_iou_of_masks_at_two_thresholds():
    logits = torch.full((3, 10, 10), -5.0)
    logits[0, :5], logits[1, :4], logits[1, 4:8] = 5.0, 5.0, 0.5
    tight, loose = logits > 1, logits > -1
    naive = [float((t & w).sum() / max(1, (t | w).sum())) for t, w in zip(tight, loose)]
    assert stability(logits).tolist() == naive == [1, 0.5, 0]


def test_automatic_masks_are_unique_and_named(prompted, image):
    seen = prompted.set_image(image)
    loose = {"side": 6, "iou_pred": 0, "stability_score": 0}
    every = generate_masks(seen, WORDS, overlap=1, **loose)
    found = generate_masks(seen, WORDS, overlap=0.5, **loose)
    assert 0 < len(found) < len(every)
    best = found[0]
    assert best.mask.shape == (50, 70)
    x0, y0, x1, y1 = best.box
    assert best.mask[y0:y1, x0:x1].sum() == best.mask.sum() > 0
    assert best.classes == tuple(seen.name(best.mask[None], WORDS)[0])
    assert [p.iou_pred for p in found] == sorted((p.iou_pred for p in found), reverse=True)
    point = click_grid(seen.size, 6)
    alone = [seen.prompt([p], [1]) for p in point.tolist()]
    assert any(np.array_equal(mask, best.mask) and q == pytest.approx(best.iou_pred, abs=1e-5) for mask, q in alone)
    assert len(generate_masks(seen, overlap=1, most=2, **loose)) == 2
    assert generate_masks(seen, iou_pred=1, stability_score=1) == []


def test_automatic_masks_need_prompts_and_valid_thresholds(words_only, prompted, image):
    with pytest.raises(ValueError, match=r"take words only: use weights .* \(configs/mini/prompts.yaml\)"):
        generate_masks(words_only.set_image(image))
    with pytest.raises(ValueError, match="overlap 7 is out of range: 0 to 1"):
        generate_masks(prompted.set_image(image), overlap=7)
