"""Tests of each loss against a naive reference implementation, and of its edge cases."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from skysense_o import losses, published_losses

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


def naive_focal(logits, sem_seg, valid):
    samples = []
    for b in range(B):
        terms = []
        for t in range(T):
            for y in range(H):
                for x in range(W):
                    if valid[b, t] and sem_seg[b, y, x] != 255:
                        p = torch.sigmoid(logits[b, t, y, x])
                        own = sem_seg[b, y, x] == t
                        right = p if own else 1 - p
                        terms.append(-(0.25 if own else 0.75) * (1 - right) ** 2 * torch.log(right))
        samples.append(sum(terms) / len(terms))
    return sum(samples) / B


def naive_published_bce(logits, sem_seg, valid):
    """Binary cross-entropy as published: every pixel counts, and an ignored pixel is negative for every class."""
    samples = []
    for b in range(B):
        terms = []
        for t in range(T):
            if valid[b, t]:
                p = torch.sigmoid(logits[b, t])
                terms.append(-torch.where(sem_seg[b] == t, p, 1 - p).log().mean())
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
        (losses.focal, naive_focal),
        (partial(losses.pixel_bce, ignored_as_negative=True), naive_published_bce),
    ],
)
def test_pixel_losses_equal_their_naive_twins(batch, loss, naive):
    torch.testing.assert_close(loss(*batch), naive(*batch), atol=1e-5, rtol=1e-5)


@pytest.fixture
def regions(batch):
    """Return pooled region features and the region losses' other inputs, after checking that pooling is a mean."""
    _, sem_seg, valid = batch
    g = torch.Generator().manual_seed(1)
    dense = torch.randn(B, D, H, W, generator=g)
    text = torch.nn.functional.normalize(torch.randn(B, T, D, generator=g), dim=-1)
    pooled = losses.pool_regions(dense, sem_seg, T)
    present = losses.present_classes(sem_seg, T)
    for b in range(B):
        for t in range(T):
            mask = sem_seg[b] == t
            assert present[b, t] == mask.any()
            want = dense[b][:, mask].mean(1) if mask.any() else torch.zeros(D)
            torch.testing.assert_close(pooled[b, t], want, atol=1e-5, rtol=0)
    return pooled, present, text, valid


def test_region_contrast_equals_its_naive_twin(regions):
    pooled, present, text, valid = regions
    samples = []
    for b in range(B):
        terms = []
        for t in range(T):
            if valid[b, t] and present[b, t]:
                region = torch.nn.functional.normalize(pooled[b, t], dim=0)
                scores = torch.stack([region @ text[b, j] / 0.1 for j in range(T) if valid[b, j]])
                terms.append(-scores.log_softmax(0)[t])
        samples.append(sum(terms) / len(terms))
    torch.testing.assert_close(losses.region_contrast(*regions, 0.1), sum(samples) / B, atol=1e-5, rtol=1e-5)


@pytest.fixture
def pairs():
    """Return similarities of T phrases: textual S_t, some of them negative, and visual S_v, 0 where unknown."""
    g = torch.Generator().manual_seed(4)
    visual_similarity = torch.randint(0, 11, (B, T, T), generator=g) / 10
    return torch.rand(B, T, T, generator=g) * 2 - 1, visual_similarity


def test_vision_centric_equals_its_naive_twin(regions, pairs):
    pooled, present, text, valid = regions
    alike, visual_similarity = pairs
    samples = []
    for b in range(B):
        total, names = 0.0, [t for t in range(T) if valid[b, t]]
        for i in names:
            for j in names:
                # Pairs of a phrase with itself are left out: their S_v is 1, so their terms are 0.
                if present[b, i] and i != j:
                    region = torch.nn.functional.normalize(pooled[b, i], dim=0)
                    bce = -torch.log(1 - torch.sigmoid(region @ text[b, j] / 0.1))
                    total += ((1 - visual_similarity[b, i, j]) * max(alike[b, i, j], 0) * bce) ** 2
        samples.append(total / len(names) ** 2)
    torch.testing.assert_close(losses.vision_centric(*regions, *pairs, 0.1), sum(samples) / B, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("graph", [True, False])
def test_published_regional_losses_equal_their_naive_twins(regions, pairs, graph):
    pooled, present, text, valid = regions
    alike, visual_similarity = pairs
    region, regular = [], []
    for b in range(B):
        n = int(valid[b].sum())
        r = torch.nn.functional.normalize(pooled[b, :n], dim=-1)
        s = r @ text[b, :n].T
        s = (s - s.min()) / (s.max() - s.min())
        y = torch.diag(present[b, :n].float())
        region.append(torch.nn.functional.binary_cross_entropy_with_logits(s, y))
        score = (10 * visual_similarity[b, :n, :n]).round()
        factor = torch.where(score > 0, 11 - score, 0.0) if graph else torch.ones(n, n)
        m = (alike[b, :n, :n] * s * factor).abs()
        regular.append(m[~torch.eye(n, dtype=torch.bool)].mean())
    scores = published_losses.published_region_scores(pooled, text, valid)
    got = published_losses.published_region_bce(scores, present, valid)
    torch.testing.assert_close(got, sum(region) / B, atol=1e-6, rtol=1e-5)
    got = published_losses.published_vision_centric(scores, present, valid, alike, visual_similarity if graph else None)
    torch.testing.assert_close(got, sum(regular) / B, atol=1e-6, rtol=1e-5)


def test_chunks_of_names_change_no_loss_and_no_gradient():
    g = torch.Generator().manual_seed(5)
    # The logits are smaller than the labels, so each loss resizes them.
    logits = torch.randn(B, 7, H // 2, W // 2, generator=g, requires_grad=True)
    sem_seg, valid = torch.randint(0, 7, (B, H, W), generator=g), torch.ones(B, 7, dtype=torch.bool)
    for loss in (losses.pixel_bce, losses.focal, losses.dice):
        whole, chunked = loss(logits, sem_seg, valid), loss(logits, sem_seg, valid, chunk=3)
        torch.testing.assert_close(chunked, whole)
        torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (chunked, whole)))


def test_name_255_is_not_what_ignored_pixels_are():
    """With more than 255 classes, the label 255 still means an ignored pixel, never class 255."""
    sem_seg = torch.full((1, 4, 4), 255)
    sem_seg[0, 0] = 3
    assert losses.one_hot(sem_seg, 300).nonzero()[:, 1].unique().tolist() == [3]
    assert losses.present_classes(sem_seg, 300).nonzero()[:, 1].tolist() == [3]
    assert losses.pool_regions(torch.ones(1, 2, 4, 4), sem_seg, 300)[0, 255].tolist() == [0, 0]


def test_names_are_encoded_once(monkeypatch):
    """Sentence similarity (S_t) encodes each name once for all vocabularies, and loads its encoder at first use."""
    from skysense_o.modeling import minilm

    asked, read = [], []

    def encode(model, tokenizer, strings, device):
        asked.extend(strings)
        return torch.nn.functional.normalize(torch.tensor([[len(s), 1.0] for s in strings]), dim=-1)

    monkeypatch.setattr(minilm, "load_minilm", lambda: read.append(1) or (None, None))
    monkeypatch.setattr(minilm, "encode_sentences", encode)
    similarity = minilm.SentenceSimilarity()
    assert read == []
    first = similarity(("road", "lake"))
    second = similarity(("lake", "river", "road"))
    assert (asked, read) == (["road", "lake", "river"], [1])
    torch.testing.assert_close(first[0, 1], second[2, 0])
    torch.testing.assert_close(second.diagonal(), torch.ones(3))


def test_presence_asks_only_what_is_known(batch):
    _, sem_seg, valid = batch
    presence = torch.randn(B, T, generator=torch.Generator().manual_seed(2))
    # Sample 0 has ignored pixels, so no class is known to be absent. In sample 1, two classes are present, one absent.
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
    """The loss of a batch is the mean over its samples, so splitting a batch across processes does not change it."""
    logits, sem_seg, valid = batch
    for loss in (losses.pixel_bce, losses.focal, losses.pixel_cross_entropy, losses.dice):
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
    pooled, present = losses.pool_regions(dense, sem_seg, names), losses.present_classes(sem_seg, names)
    alike, scores = torch.ones(1, names, names), published_losses.published_region_scores(pooled, text, valid)
    terms = [
        losses.pixel_bce(logits, sem_seg, valid, chunk=64),
        losses.focal(logits, sem_seg, valid, chunk=64),
        losses.pixel_cross_entropy(logits, sem_seg, valid),
        losses.dice(logits, sem_seg, valid, chunk=64),
        losses.region_contrast(pooled, present, text, valid, 0.07),
        losses.vision_centric(pooled, present, text, valid, alike, 0 * alike, 0.07),
        published_losses.published_region_bce(scores, present, valid),
        published_losses.published_vision_centric(scores, present, valid, alike, 0.1 * alike),
        losses.presence_bce(presence, sem_seg, valid, (sem_seg != 255).flatten(1).all(1)),
    ]
    sum(terms).backward()
    assert all(torch.isfinite(term) for term in terms)
    assert all(torch.isfinite(x.grad).all() for x in (logits, dense, presence))
    if case == "all ignored":
        assert [term.item() for term in terms] == [0] * len(terms)
