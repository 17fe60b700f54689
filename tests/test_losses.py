"""Each loss against a naive twin, and at its edges."""

from __future__ import annotations

import math

import pytest
import torch

from skysense_o import losses

B, T, D, H, W = 2, 4, 6, 8, 12


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(B, T, H, W, generator=g) * 2
    sem_seg = torch.randint(0, T - 1, (B, H, W), generator=g)
    sem_seg[0, :3] = 255
    sem_seg[1] = sem_seg[1].clamp(max=1)
    valid = torch.tensor([[True] * 4, [True, True, True, False]])
    return logits, sem_seg, valid


def naive_bce(logits, sem_seg, valid):
    samples = []
    for b in range(B):
        terms = []
        for t in range(T):
            for y in range(H):
                for x in range(W):
                    if valid[b, t] and sem_seg[b, y, x] != 255:
                        p = torch.sigmoid(logits[b, t, y, x])
                        terms.append(-torch.log(p if sem_seg[b, y, x] == t else 1 - p))
        samples.append(sum(terms) / len(terms))
    return sum(samples) / B


def naive_cross_entropy(logits, sem_seg, valid):
    samples = []
    for b in range(B):
        terms = []
        for y in range(H):
            for x in range(W):
                if sem_seg[b, y, x] != 255:
                    scores = [math.exp(logits[b, t, y, x]) for t in range(T) if valid[b, t]]
                    terms.append(-math.log(scores[sem_seg[b, y, x]] / sum(scores)))
        samples.append(sum(terms) / len(terms))
    return torch.tensor(sum(samples) / B)


def naive_dice(logits, sem_seg, valid):
    samples = []
    for b in range(B):
        known, terms = sem_seg[b] != 255, []
        for t in range(T):
            mask = (sem_seg[b] == t).float()
            if valid[b, t] and mask.sum() > 0:
                p = torch.sigmoid(logits[b, t]) * known
                terms.append(1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1))
        samples.append(sum(terms) / len(terms))
    return sum(samples) / B


@pytest.mark.parametrize(
    ("loss", "naive"),
    [
        (losses.pixel_bce, naive_bce),
        (losses.pixel_cross_entropy, naive_cross_entropy),
        (losses.dice, naive_dice),
    ],
)
def test_pixel_losses_equal_their_naive_twins(batch, loss, naive):
    torch.testing.assert_close(loss(*batch), naive(*batch), atol=1e-5, rtol=1e-5)


def test_region_contrast_equals_its_naive_twin(batch):
    _, sem_seg, valid = batch
    g = torch.Generator().manual_seed(1)
    dense = torch.randn(B, D, H, W, generator=g)  # the grid is the picture: pooling is a plain mean
    text = torch.nn.functional.normalize(torch.randn(B, T, D, generator=g), dim=-1)
    samples = []
    for b in range(B):
        terms = []
        for t in range(T):
            mask = sem_seg[b] == t
            if valid[b, t] and mask.any():
                region = torch.nn.functional.normalize(dense[b][:, mask].mean(1), dim=0)
                scores = torch.stack([region @ text[b, j] / 0.1 for j in range(T) if valid[b, j]])
                terms.append(-scores.log_softmax(0)[t])
        samples.append(sum(terms) / len(terms))
    got = losses.region_contrast(dense, text, sem_seg, valid, 0.1)
    torch.testing.assert_close(got, sum(samples) / B, atol=1e-5, rtol=1e-5)


def test_presence_asks_only_what_is_known(batch):
    _, sem_seg, valid = batch
    presence = torch.randn(B, T, generator=torch.Generator().manual_seed(2))
    # Sample 0 has ignored pixels: absence is not known there. Sample 1 is complete: two present, one absent.
    first = torch.nn.functional.softplus(-presence[0, :3]).mean()
    second = torch.stack(
        [
            torch.nn.functional.softplus(-presence[1, 0]),
            torch.nn.functional.softplus(-presence[1, 1]),
            torch.nn.functional.softplus(presence[1, 2]),
        ]
    ).mean()
    torch.testing.assert_close(
        losses.presence_bce(presence, sem_seg, valid, torch.tensor([False, True])), (first + second) / 2
    )


def test_a_batch_is_the_mean_of_its_samples(batch):
    """So the loss does not depend on how a batch is shared between processes."""
    logits, sem_seg, valid = batch
    for loss in (losses.pixel_bce, losses.pixel_cross_entropy, losses.dice):
        alone = [loss(logits[b : b + 1], sem_seg[b : b + 1], valid[b : b + 1]) for b in range(B)]
        torch.testing.assert_close(loss(logits, sem_seg, valid), sum(alone) / B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["all ignored", "one name", "many names"])
def test_edges_are_finite(case, dtype):
    names = {"one name": 1, "many names": 1763}.get(case, 3)
    logits = (100 * torch.randn(1, names, 4, 4)).to(dtype).requires_grad_()
    dense = torch.zeros(1, D, 2, 2, dtype=dtype, requires_grad=True)
    presence = torch.zeros(1, names, dtype=dtype, requires_grad=True)
    text = torch.nn.functional.normalize(torch.randn(1, names, D), dim=-1)
    sem_seg = torch.full((1, 4, 4), 255 if case == "all ignored" else 0)
    valid = torch.ones(1, names, dtype=torch.bool)
    terms = [
        losses.pixel_bce(logits, sem_seg, valid),
        losses.pixel_cross_entropy(logits, sem_seg, valid),
        losses.dice(logits, sem_seg, valid),
        losses.region_contrast(dense, text, sem_seg, valid, 0.07),
        losses.presence_bce(presence, sem_seg, valid, (sem_seg != 255).flatten(1).all(1)),
    ]
    sum(terms).backward()
    assert all(torch.isfinite(term) for term in terms)
    assert all(torch.isfinite(x.grad).all() for x in (logits, dense, presence))
    if case == "all ignored":
        assert [term.item() for term in terms] == [0, 0, 0, 0, 0]
