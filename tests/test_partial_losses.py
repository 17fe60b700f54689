"""Tests of losses for partial labels: with complete labels they equal the full losses, otherwise a naive loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from skysense_o import losses
from skysense_o import partial_losses as partly
from skysense_o.sample import IGNORE, MAYBE, NO, UNKNOWN, YES

B, T, SIDE = 3, 5, 12


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (B, SIDE, SIDE), generator=generator)  # no pixel has phrase 4
    labels[0, :3] = IGNORE
    logits = torch.randn(B, T, SIDE, SIDE, generator=generator, dtype=torch.float64, requires_grad=True)
    return labels, logits, torch.ones(B, T, dtype=torch.bool)


def complete(count=T):
    return torch.where(torch.eye(count) > 0, YES, NO).to(torch.int8)


@pytest.fixture
def partial_batch(batch):
    """Return a batch of partial labels.

    A pixel may have two phrases that are YES, and phrases that are unknown. One label value says nothing about any
    phrase, and one phrase is unknown everywhere.
    """
    labels, logits, _ = batch
    generator = torch.Generator().manual_seed(1)
    says = [torch.randint(-1, 2, (4, T), generator=generator).to(torch.int8) for _ in range(B)]
    says[1][2] = UNKNOWN
    says[2][:, 3] = UNKNOWN
    table = partly.says_table(says, T)
    return labels, logits, says, table, partly.partial_targets(labels, table)


@pytest.mark.parametrize(
    ("full", "part"),
    [
        (losses.pixel_bce, partly.partial_bce),
        (losses.focal, partly.partial_focal),
        (losses.pixel_cross_entropy, partly.partial_cross_entropy),
        (losses.dice, partly.partial_dice),
    ],
)
def test_where_all_is_known_they_are_those_of_complete_labels(batch, full, part):
    labels, logits, valid = batch
    target = partly.partial_targets(labels, partly.says_table([complete()] * B, T))
    one, other = full(logits, labels, valid), part(logits, target)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (one, other)), rtol=1e-5, atol=1e-9)


def test_presence_and_regions_of_complete_labels(batch):
    labels, _, valid = batch
    table = partly.says_table([complete()] * B, T)
    target = partly.partial_targets(labels, table)
    generator = torch.Generator().manual_seed(2)
    scores, dense = torch.randn(B, T, generator=generator), torch.randn(B, 8, 4, 4, generator=generator)
    text = F.normalize(torch.randn(B, T, 8, generator=generator), dim=-1)
    whole = (labels != IGNORE).flatten(1).all(1)
    torch.testing.assert_close(
        losses.presence_bce(scores, labels, valid, whole), partly.partial_presence(scores, target, labels, table)
    )
    present = losses.present_classes(labels, T)
    one = losses.region_contrast(losses.pool_regions(dense, labels, T), present, text, valid, 0.07)
    other = partly.partial_region_contrast(
        partly.pool_yes(dense, target), present, text, valid, partly.opposed_names(labels, table), 0.07
    )
    torch.testing.assert_close(one, other)


def test_targets_by_a_loop(partial_batch):
    labels, _, says, _, target = partial_batch
    for b in range(B):
        for y in range(SIDE):
            for x in range(SIDE):
                value = int(labels[b, y, x])
                expected = [UNKNOWN] * T if value == IGNORE else says[b][value].tolist()
                assert target[b, :, y, x].tolist() == expected


def test_bce_and_cross_entropy_by_a_loop(partial_batch):
    _, logits, _, _, target = partial_batch
    bce, cross = [], []
    for b in range(B):
        known, competing = [], []
        for y in range(SIDE):
            for x in range(SIDE):
                z, t = logits[b, :, y, x].tolist(), target[b, :, y, x].tolist()
                known += [math.log1p(math.exp(-v if s == YES else v)) for v, s in zip(z, t) if s != UNKNOWN]
                against = sum(math.exp(v) for v, s in zip(z, t) if s == NO)
                each = [math.log1p(against / math.exp(v)) for v, s in zip(z, t) if s == YES]
                if each:
                    competing.append(sum(each) / len(each))
        bce.append(sum(known) / len(known))
        cross.append(sum(competing) / len(competing))
    assert float(partly.partial_bce(logits, target).detach()) == pytest.approx(sum(bce) / B, abs=1e-9)
    assert float(partly.partial_cross_entropy(logits, target).detach()) == pytest.approx(sum(cross) / B, abs=1e-6)


def test_focal_by_a_loop(partial_batch):
    _, logits, _, _, target = partial_batch
    means = []
    for b in range(B):
        each = []
        for z, said in zip(logits[b].flatten().tolist(), target[b].flatten().tolist()):
            if said == UNKNOWN:
                continue
            p = 1 / (1 + math.exp(-z))
            right, alpha = (p, 0.25) if said == YES else (1 - p, 0.75)
            each.append(-alpha * (1 - right) ** 2 * math.log(right))
        means.append(sum(each) / len(each))
    assert float(partly.partial_focal(logits, target).detach()) == pytest.approx(sum(means) / B, abs=1e-7)


def test_dice_by_a_loop(partial_batch):
    _, logits, _, _, target = partial_batch
    means = []
    for b in range(B):
        each = []
        for t in range(T):
            yes, known = target[b, t] == YES, target[b, t] != UNKNOWN
            if yes.any():
                p = logits[b, t].sigmoid()[known]
                y = yes[known].double()
                each.append(float(1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)))
        means.append(sum(each) / len(each))
    assert float(partly.partial_dice(logits, target).detach()) == pytest.approx(sum(means) / B, abs=1e-9)


@pytest.mark.parametrize(
    "part", [partly.partial_bce, partly.partial_focal, partly.partial_cross_entropy, partly.partial_dice]
)
def test_unknown_pixels_have_no_gradient(partial_batch, part):
    _, logits, _, _, target = partial_batch
    gradient = torch.autograd.grad(part(logits, target), logits)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert gradient[target == UNKNOWN].abs().max() < 1e-12


@pytest.mark.parametrize(
    "part", [partly.partial_bce, partly.partial_focal, partly.partial_cross_entropy, partly.partial_dice]
)
def test_nothing_known_is_zero(batch, part):
    _, logits, _ = batch
    loss = part(logits, torch.full((B, T, SIDE, SIDE), UNKNOWN, dtype=torch.int8))
    assert float(loss) == 0
    assert torch.autograd.grad(loss, logits)[0].abs().sum() == 0


def test_bags_by_a_loop():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 2, (2, 6, 6), generator=generator)
    logits = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    says = torch.tensor([[25, 0, -1], [1, 0, 50]], dtype=torch.int8)
    table = partly.says_table([says, torch.zeros_like(says)], 3)
    terms = []
    for name, value, percent in ((0, 0, 25), (2, 1, 50)):
        inside = sorted(logits[0, name][labels[0] == value].tolist(), reverse=True)
        best = inside[: max(1, round(len(inside) * percent / 100))]
        terms.append(math.log1p(math.exp(-sum(best) / len(best))))
    expected = (sum(terms) / 2 + 0) / 2  # the second sample has no bag
    assert float(partly.bags(logits, labels, table)) == pytest.approx(expected, abs=1e-9)
    # A bag (at least so many percent of the pixels are YES) labels no single pixel as YES.
    assert (partly.partial_targets(labels, table) <= YES).all()


def test_candidates_by_a_loop():
    generator = torch.Generator().manual_seed(6)
    labels = torch.randint(0, 2, (2, 6, 6), generator=generator)
    logits = torch.randn(2, 4, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    says = torch.tensor([[NO, MAYBE, MAYBE, UNKNOWN], [YES, NO, NO, UNKNOWN]], dtype=torch.int8)
    table = partly.says_table([says, says.clamp(min=UNKNOWN)], 4)
    each = []
    for y in range(6):
        for x in range(6):
            if labels[0, y, x] == 0:
                road, one, two, _ = (math.exp(v) for v in logits[0, :, y, x].tolist())
                each.append(-math.log((one + two) / (one + two + road)))
    loss = partly.candidates(logits, labels, table)
    assert float(loss.detach()) == pytest.approx(sum(each) / len(each) / 2, abs=1e-9), (
        "the second sample has no candidates, so its loss is 0"
    )
    gradient = torch.autograd.grad(loss, logits)[0]
    assert gradient[0, 3].abs().sum() == gradient[1].abs().sum() == 0
    assert (partly.partial_targets(labels, table)[0, 1:3] == NO).sum() == 2 * (labels[0] == 1).sum(), (
        "candidates are NO only where the label says so, and unknown elsewhere"
    )


def test_presence_asks_only_what_is_known():
    says = torch.tensor([[1, 0, -1, 20]], dtype=torch.int8)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    table = partly.says_table([says], 4)
    scores = torch.tensor([[2.0, -1.0, 3.0, 0.5]])
    expected = [F.softplus(torch.tensor(v)) for v in (-2.0, -1.0, -0.5)]
    found = partly.partial_presence(scores, partly.partial_targets(labels, table), labels, table)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_a_region_meets_only_words_that_it_is_known_not_to_be():
    labels = torch.tensor([[[0, 1]]])
    says = torch.tensor([[1, 0, -1], [0, 1, 0]], dtype=torch.int8)
    against = partly.opposed_names(labels, partly.says_table([says], 3))[0]
    assert against.tolist() == [[False, True, False], [True, False, True], [True, True, True]]


def test_region_contrast_by_a_loop(partial_batch):
    """Region contrast equals a loop that pools a phrase's YES pixels and contrasts them with phrases that are NO."""
    labels, _, _, table, target = partial_batch
    generator = torch.Generator().manual_seed(5)
    dense, temperature = torch.randn(B, 8, SIDE, SIDE, generator=generator), 0.1
    text = F.normalize(torch.randn(B, T, 8, generator=generator), dim=-1)
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[0, 4] = False
    present = (target == YES).flatten(2).any(-1)
    found = partly.partial_region_contrast(
        partly.pool_yes(dense, target), present, text, valid, partly.opposed_names(labels, table), temperature
    )
    means = []
    for b in range(B):
        each = []
        for i in range(T):
            if not (present[b, i] and valid[b, i]):
                continue
            yes = target[b, i] == YES
            vector = F.normalize(dense[b][:, yes].mean(1), dim=0)
            own = math.exp(float(vector @ text[b, i]) / temperature)
            total = own
            for j in range(T):
                if j != i and valid[b, j] and (target[b, j][yes] == NO).all():
                    total += math.exp(float(vector @ text[b, j]) / temperature)
            each.append(math.log(total / own))
        means.append(sum(each) / len(each))
    assert float(found) == pytest.approx(sum(means) / B, abs=1e-5)


@pytest.fixture
def pairs():
    """Return S_t, S_v, and text with one padded phrase."""
    generator = torch.Generator().manual_seed(7)
    text = F.normalize(torch.randn(B, T, 8, generator=generator), dim=-1)
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[0, 4] = False
    alike, visual = torch.rand(B, T, T, generator=generator) * 2 - 1, torch.rand(B, T, T, generator=generator)
    return alike, visual, text, valid


def test_vision_centric_by_a_loop(partial_batch, pairs):
    labels, _, _, table, target = partial_batch
    alike, visual, text, valid = pairs
    dense = torch.randn(B, 8, SIDE, SIDE, generator=torch.Generator().manual_seed(8))
    present = (target == YES).flatten(2).any(-1)
    against = partly.opposed_names(labels, table)
    found = partly.partial_vision_centric(
        partly.pool_yes(dense, target), present, text, valid, against, alike, visual, 0.1
    )
    means, unknown = [], 0
    for b in range(B):
        each = []
        for i in range(T):
            for j in range(T):
                yes = target[b, i] == YES
                if i == j or not (yes.any() and valid[b, i] and valid[b, j]):
                    continue
                if (target[b, j][yes] != NO).any():
                    unknown += 1
                    continue
                score = float(F.normalize(dense[b][:, yes].mean(1), dim=0) @ text[b, j]) / 0.1
                factor = (1 - float(visual[b, i, j])) * max(float(alike[b, i, j]), 0)
                each.append((factor * math.log1p(math.exp(score))) ** 2)
        means.append(sum(each) / max(1, len(each)))
    assert unknown
    assert float(found) == pytest.approx(sum(means) / B, rel=1e-4)
    nothing = partly.partial_vision_centric(
        partly.pool_yes(dense, target), present, text, valid, torch.zeros_like(against), alike, visual, 0.1
    )
    assert float(nothing) == 0


def test_vision_centric_of_complete_labels(batch, pairs):
    """With complete labels, its sum over the pairs equals that of the loss for complete labels."""
    labels, _, _ = batch
    alike, visual, text, _ = pairs
    valid = torch.ones(B, T, dtype=torch.bool)
    regions = losses.pool_regions(torch.randn(B, 8, 4, 4, generator=torch.Generator().manual_seed(9)), labels, T)
    present = losses.present_classes(labels, T)
    against = partly.opposed_names(labels, partly.says_table([complete()] * B, T))
    plain = (regions, present, text, valid)
    full = losses.vision_centric(*plain, alike, visual, 0.1)
    part = partly.partial_vision_centric(*plain, against, alike, visual, 0.1)
    assert (present.sum(1) == T - 1).all()
    torch.testing.assert_close(full * T * T, part * (T - 1) * (T - 1))  # pairs of all classes; of the 4 regions


def test_caption_contrast_by_a_loop():
    generator = torch.Generator().manual_seed(4)
    pooled, text = torch.randn(3, 6, generator=generator), torch.randn(2, 4, 6, generator=generator)
    text, valid = F.normalize(text, dim=-1), torch.tensor([[True] * 4, [True, True, False, False]])
    total = 0.0
    for row, image in enumerate((0, 2)):
        vector = pooled[image] / pooled[image].norm()
        scores = [float(vector @ text[row, n]) / 0.1 for n in range(4) if valid[row, n]]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[0]
    found = partly.caption_contrast(pooled, text, valid, (0, 2), 0.1)
    assert float(found) == pytest.approx(total / 3, abs=1e-5)
