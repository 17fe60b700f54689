"""Tests of the network that corrects masks of clicks and boxes, and of its training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import drawn_samples, small_config

from skysense_o import correction_objective
from skysense_o.correction_objective import TRAINED, CorrectionObjective, correction_loss
from skysense_o.data.prompt_sampler import PromptSampler
from skysense_o.evaluation.prompts import evaluate_prompts
from skysense_o.meta_arch import SkySenseO
from skysense_o.modeling.mask_corrector import (
    EMBEDDING,
    NEAR,
    MaskCorrector,
    _by_label,
    _contrast,
    _enlarged,
    _inside,
    _likeness,
    last_clicks,
    nearness,
)
from skysense_o.modeling.sam_head import ImageEmbedding
from skysense_o.training.optimizer import build_optimizer

CHANNELS, GRID = 6, (13, 18)
NO_BOX = [math.nan] * 4


def prompts(*clicks: list[tuple[int, int, int]], most: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and labels of some masks, padded to `most` clicks."""
    rows = [[*given, *[(0, 0, -1)] * (most - len(given))] for given in clicks]
    table = torch.tensor(rows)
    return table[..., :2], table[..., 2]


@pytest.fixture
def network() -> MaskCorrector:
    torch.manual_seed(0)
    made = MaskCorrector(CHANNELS, 2)
    torch.nn.init.normal_(made.last[-1].weight)
    return made.eval()


def example(count: int = 2) -> list:
    g = torch.Generator().manual_seed(1)
    images = torch.randn(1, EMBEDDING, *GRID, generator=g)
    shares = [torch.rand(1, classes, *GRID, generator=g).expand(count, -1, -1, -1) for classes in (3, 5)]
    return [images, shares, torch.randn(1, *GRID, generator=g).expand(count, -1, -1)]


def test_an_untrained_network_leaves_the_mask_as_it_is():
    image, shares, mask = example(1)
    points, labels = prompts([(4, 5, 1)])
    after = MaskCorrector(CHANNELS, 2).eval()(image, shares, mask, points, labels, torch.tensor([NO_BOX]))
    assert torch.equal(after > 0, mask > 0)


def test_masks_of_one_image_and_padding_do_not_change_each_other(network):
    image, shares, mask = example(2)
    points, labels = prompts([(4, 5, 1), (9, 2, 0)], [(16, 11, 1)])
    boxes = torch.tensor([NO_BOX, [2.0, 3.0, 17.0, 12.0]])
    both = network(image, shares, mask, points, labels, boxes)
    for row in range(2):
        alone = [one[row : row + 1] for one in (*shares, mask, points[:, :2], labels[:, :2], boxes)]
        one = network(image, alone[:2], *alone[2:])
        torch.testing.assert_close(one[0], both[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change", ["place", "label", "order", "box", "mask", "class maps"])
def test_all_that_is_known_of_a_prompt_counts(network, change):
    image, shares, mask = example(1)
    given, box = [(4, 5, 1), (9, 2, 0)], NO_BOX
    before = network(image, shares, mask, *prompts(given), torch.tensor([box]))
    if change == "place":
        given[1] = (15, 10, 0)
    elif change == "label":
        given[1] = (9, 2, 1)
    elif change == "order":
        given = given[::-1]
    elif change == "box":
        box = [1.0, 1.0, 9.0, 9.0]
    elif change == "mask":
        mask = -mask
    else:
        shares = [torch.flip(x, [-1]) for x in shares]
    after = network(image, shares, mask, *prompts(given), torch.tensor([box]))
    assert (after - before).abs().max() > 1e-3


def test_the_maps_of_clicks_and_boxes_as_loops():
    g = torch.Generator().manual_seed(2)
    features, mask = torch.randn(1, 4, *GRID, generator=g), torch.zeros(1, *GRID)
    clicks = [(0, 0), (7, 12), (17, 6)]
    points, given = torch.tensor([clicks]), torch.tensor([[True, True, False]])
    near, like = nearness(mask, points, given)[0], _likeness(features, points)[0]
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            distance = min(math.hypot(column - x, row - y) for x, y in clicks[:2])
            assert near[row, column].item() == pytest.approx(
                math.exp(-distance / (NEAR * math.sqrt(13 * 18))), abs=1e-5
            )
            for click, (x, y) in enumerate(clicks):
                around = features[0, :, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean((1, 2))
                product = float(features[0, :, row, column] @ (around / max(0.1, float(around.norm()))))
                assert like[click, row, column].item() == pytest.approx(product, abs=1e-4)
    assert not nearness(mask, points, torch.zeros_like(given)).any(), "without clicks"
    inside = _inside(mask, torch.tensor([[2.5, 3.0, 5.1, 7.0]]))[0]
    assert inside.nonzero().amin(0).tolist() == [3, 2]
    assert inside.nonzero().amax(0).tolist() == [6, 5]
    assert not _inside(mask, torch.tensor([NO_BOX])).any()


def test_values_of_clicks_by_their_label():
    values = torch.tensor([3.0, 5.0, 4.0, 9.0])[:, None, None].expand(2, 4, *GRID)
    labels = torch.tensor([[1, 0, 1, -1], [-1, -1, -1, -1]])
    foreground, background, last = _by_label(values, labels)
    assert [float(one[0, 0, 0]) for one in (foreground, background, last)] == [4, 5, 4]
    assert all((one[1] == -torch.inf).all() for one in (foreground, background, last)), "without clicks"


def test_a_box_tells_its_inside_from_its_surroundings():
    features = torch.zeros(2, 3, *GRID)
    features[:, 0] = 1  # land with a roof in the box, and a road that crosses box and surroundings
    features[:, :, 4:8, 5:9] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    features[:, :, 6] = torch.tensor([0.0, 0.0, 1.0])[:, None]
    boxes = torch.tensor([[5.0, 4.0, 9.0, 8.0], NO_BOX])
    inside = _inside(features[:, 0], boxes)
    around = _inside(features[:, 0], _enlarged(boxes)) * (1 - inside)
    assert around[0].nonzero().amin(0).tolist() == [2, 3]
    assert around[0].nonzero().amax(0).tolist() == [9, 10]
    found = _contrast(features, inside, around)
    assert not found[1].any(), "without a box"
    means = []
    for part in (inside[0], around[0]):
        cells = [features[0, :, y, x] for y, x in part.nonzero().tolist()]
        means.append(torch.stack(cells).mean(0))
    vector = (means[0] - means[1]) / (means[0] - means[1]).norm()
    expected = [[float(features[0, :, y, x] @ vector) for x in range(GRID[1])] for y in range(GRID[0])]
    torch.testing.assert_close(found[0], torch.tensor(expected))
    assert found[0, 5, 6] > 0.6 > 0 > found[0, 0, 0]
    assert abs(found[0, 6, 0]) < 0.3


def test_the_last_click_is_the_last_that_is_no_padding():
    points, labels = prompts([(1, 2, 1), (3, 4, 0)], [], [(5, 6, 1), (7, 8, 0), (9, 10, 1)])
    last, label = last_clicks(points, labels)
    assert last[0].tolist() == [[3, 4]]
    assert last[2].tolist() == [[9, 10]]
    assert label.tolist() == [[0], [-1], [1]]


def test_the_loss_of_a_correction():
    logits = torch.tensor([[[3.0, -2.0, 1.0]], [[9.0, 9.0, 9.0]]])
    target = torch.tensor([[[True, True, False]], [[False, False, False]]])
    known, weight = torch.tensor([[[True, True, False]]] * 2), torch.tensor([[[1.0, 3.0, 1.0]]] * 2)
    bce = (math.log1p(math.exp(-3)) + 3 * math.log1p(math.exp(2))) / 4
    p, q = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(2))
    dice = 1 - (2 * (p + q) + 1) / (p + q + 2 + 1)
    assert correction_loss(logits, target, known, weight).item() == pytest.approx(bce + dice, rel=1e-4)
    assert correction_loss(logits[1:], target[1:], known[1:], weight[1:]).item() == 0, "an empty mask is left out"


def correction_config():
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.PROMPTS = cfg.MODEL.SEM_SEG_HEAD.CLASS_MAPS = True
    cfg.MODEL.LOSS.CORRECTION, cfg.MODEL.LOSS.PROMPT_ROUNDS = 1.0, 4
    cfg.MODEL.LOSS.BCE = cfg.MODEL.LOSS.PRESENCE = 0.0
    return cfg


@pytest.mark.slow
def test_training_on_corrections_improves_clicks():
    torch.manual_seed(0)
    np.random.seed(0)
    model, sampler, samples = SkySenseO(correction_config()).train(), PromptSampler(4), drawn_samples(4)
    groups = [["prompt_corrector", 1.0, 0.0], [".", 0.0, 0.0]]
    optimizer = build_optimizer(model, groups, 3e-3)
    before = evaluate_prompts(model, [lambda s=s: s for s in samples])
    for _ in range(60):
        batch = [{**s, "prompts": sampler(s["sem_seg"].numpy())} for s in samples]
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert set(losses) == {"loss_correction"}
    after = evaluate_prompts(model, [lambda s=s: s for s in samples])
    assert after["click5"] > before["click5"] + 0.1
    assert after["click5"] > after["click1"] + 0.02, "further clicks correct"


def test_wrong_settings_and_samples_are_errors(monkeypatch):
    with pytest.raises(ValueError, match=f"PROMPT_ROUNDS 1 is too small for MODEL.LOSS.CORRECTION: at least {TRAINED}"):
        CorrectionObjective(1.0, 1)
    model = SkySenseO(correction_config()).train()
    with pytest.raises(ValueError, match="MODEL.LOSS.CORRECTION needs samples with prompts: set INPUT.PROMPTS above 0"):
        model(drawn_samples(1))
    monkeypatch.setattr(correction_objective, "WINDOW", 8)
    samples = [{**sample, "prompts": PromptSampler(1)(sample["sem_seg"].numpy())} for sample in drawn_samples(1)]
    with pytest.raises(
        ValueError, match=r"grid of \(16, 24\) cells is too large .*: at most 8 a side; make INPUT.CROP_SIZE"
    ):
        model(samples)


def test_the_embedding_of_an_image_is_kept_for_further_corrections_but_not_for_gradients(monkeypatch):
    torch.manual_seed(0)
    head = SkySenseO(correction_config()).eval().sem_seg_head
    calls, embed = [], head.prompt_corrector.embed.forward
    monkeypatch.setattr(head.prompt_corrector.embed, "forward", lambda x: calls.append(1) or embed(x))
    canvas = torch.randn(1, head.prompt_corrector.embed[1].in_channels, *GRID)
    image = ImageEmbedding([], (canvas, canvas), canvas, (13, 18))
    whole, (points, labels) = (slice(0, 13), slice(0, 18)), prompts([(4, 5, 1)])
    prompt = ([torch.rand(1, n, *GRID) for n in (5, 26)], torch.randn(1, *GRID), points, labels, torch.tensor([NO_BOX]))
    with torch.no_grad():
        first, second = (head.correct(image, whole, *prompt) for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first, second)
    trained = head.correct(image, whole, *prompt)
    assert len(calls) == 2, "kept features have no gradient"
    assert trained.requires_grad
    assert image.cells is None
