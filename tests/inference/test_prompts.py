"""Tests of clicks and boxes: as user input, in the decoder, and in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import drawn_samples, small_config
from PIL import Image

from skysense_o import Predictor
from skysense_o.box_regions import CLASSES
from skysense_o.clicks import box_between, box_from_mask, components, corrective, middle
from skysense_o.data.prompt_sampler import PromptSampler
from skysense_o.evaluation.prompts import evaluate_prompts
from skysense_o.geometry import ImageTransform
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.meta_arch import SkySenseO
from skysense_o.modeling import Features, Queries
from skysense_o.modeling.prompt_encoder import _likeness, _nearness, _points, _where
from skysense_o.modeling.sam_head import SAMMaskHead
from skysense_o.prompt_objective import prepared_prompts, prompt_terms
from skysense_o.training.optimizer import build_optimizer
from skysense_o.vocabulary import Vocabulary


def two_squares() -> np.ndarray:
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 3:9] = 1
    labels[10:18, 20:28] = 1
    labels[0] = 255
    return labels


def test_components_have_middles_and_boxes():
    parts = components(two_squares(), 10)
    assert len(parts) == 3, "the connected regions must be the background and two squares"
    assert box_from_mask(parts[1]) == (3, 2, 9, 8), "the box must be half-open: x1 and y1 are one past the last pixel"
    x0, y0, x1, y1 = box_from_mask(parts[2])
    assert (two_squares()[y0:y1, x0:x1] == 1).all()
    assert box_between((8, 2), (3, 7)) == (3, 2, 9, 8)
    x, y = middle(parts[1])
    assert 5 <= x <= 6
    assert 4 <= y <= 5
    assert components(two_squares(), 40)[1][12, 22], "the smaller square has too few pixels and must be left out"


def test_a_corrective_click_lies_in_the_largest_error():
    parts, everywhere = components(two_squares(), 10), np.ones((20, 30), bool)
    small, large = parts[1], parts[2]
    assert corrective(small | large, small, everywhere) == (*middle(large), 1)
    assert corrective(small, small | large, everywhere) == (*middle(large), 0)
    assert corrective(small, small, everywhere) == (*middle(small), 1)
    assert corrective(small, small | large, ~large)[2] == 1, "pixels with an unknown label must not count as an error"


def test_sampled_prompts_lie_inside_their_mask():
    np.random.seed(0)
    labels, kinds = two_squares(), set()
    labels[0] = 0
    for _ in range(20):
        prompts = PromptSampler(2)(labels)
        for mask, points, given, box in zip(*prompts.values()):
            inside = points[given >= 0].long()
            assert (given <= 1).all()
            assert mask[inside[:, 1], inside[:, 0]].all()
            assert box.isnan().all() == bool((given >= 0).any()), "a prompt must have clicks or a box, not both"
            kinds.add(int((given >= 0).sum()))
    assert kinds == {0, 1, 2, 3}
    empty = PromptSampler(2)(np.full((9, 9), 255, np.uint8))
    assert not empty["masks"].any()
    assert (empty["labels"] == -1).all()
    assert empty["boxes"].isnan().all()


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 4, "mlp": 64, "shared": 3}
    return SAMMaskHead(dim=24, pyramid_channels=(8, 8), prompts=True, **sizes).eval()


@pytest.fixture(scope="module")
def features():
    g = torch.Generator().manual_seed(1)
    pyramid = (torch.randn(2, 8, 10, 14, generator=g), torch.randn(2, 8, 20, 28, generator=g))
    dense = torch.randn(2, 24, 5, 7, generator=g)
    return Features(dense, pyramid, dense.mean((2, 3)))


def queries(words: int = 2, prompts: int = 3, padding: int = 0) -> Queries:
    g = torch.Generator().manual_seed(2)
    text = torch.nn.functional.normalize(torch.randn(2, words, 1, 24, generator=g), dim=-1)
    points = torch.rand(2, prompts, 2 + padding, 2, generator=g) * torch.tensor([111.0, 79.0])
    labels = torch.full((2, prompts, 2 + padding), -1)
    points[:, :, :2] = torch.tensor([[30.0, 20.0], [70.0, 60.0]])
    points[:, :, 0, 0] += torch.arange(prompts) * 7
    labels[:, :, 0], labels[:, :, 1] = 1, 0
    boxes = torch.full((2, prompts, 4), float("nan"))
    boxes[:, 1] = torch.tensor([10.0, 10.0, 61.0, 51.0])
    return Queries(text, torch.ones(2, words, dtype=torch.bool), points, labels, boxes)


def test_the_decoder_returns_the_documented_shapes(head, features):
    logits, presence, iou_pred = head(features, queries())
    assert logits.shape == (2, 5, 20, 28)
    assert presence.shape == (2, 2)
    assert iou_pred.shape == (2, 3)


def test_queries_are_independent(head, features):
    """Prompts' masks do not depend on phrases, other prompts or padding; phrases' masks do not depend on prompts."""
    whole = head(features, queries())
    q = queries()
    for k in range(3):
        one = Queries(
            q.text[:, :0], q.valid[:, :0], q.points[:, k : k + 1], q.labels[:, k : k + 1], q.boxes[:, k : k + 1]
        )
        logits, _, iou_pred = head(features, one)
        torch.testing.assert_close(logits[:, 0], whole[0][:, 2 + k], atol=1e-5, rtol=0)
        torch.testing.assert_close(iou_pred[:, 0], whole[2][:, k], atol=1e-5, rtol=0)
    padded = head(features, queries(padding=4))
    torch.testing.assert_close(padded[0], whole[0], atol=1e-5, rtol=0)
    words = head(features, Queries(q.text, q.valid))
    torch.testing.assert_close(words[0], whole[0][:, :2], atol=1e-6, rtol=0)
    assert words[2] is None


def test_the_product_with_the_position_encoding_equals_its_naive_twin(head):
    weights, grid = torch.randn(2, 3, 2 * head.position.positional_encoding_gaussian_matrix.shape[1]), (9, 14)
    naive = torch.einsum("bkc,chw->bkhw", weights, head.position(grid)) / weights.shape[-1] ** 0.5
    assert torch.allclose(_where(weights, head.position, grid), naive, atol=1e-5)


def test_what_depends_on_the_image_alone_is_computed_once(head, features, monkeypatch):
    """Features that depend only on the image are computed once; decoding again reuses them for the same masks."""
    calls = []
    with torch.no_grad():
        image, fresh = head.refine(features), head.refine(features)
        asked = queries()
        first = head.decode(image, asked)
        counted = [head.transformer.final_attn_token_to_image.k_proj, head.prompts.look]
        hooks = [module.register_forward_hook(lambda *args: calls.append(args[0])) for module in counted]
        again = head.decode(image, asked)
        assert calls == []
        other = head.decode(fresh, asked)
        assert calls == [head.prompts.look]
    for hook in hooks:
        hook.remove()
    for a, b, c in zip(first, again, other):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    head.decode(image := head.refine(features), asked)
    # In training nothing is cached, because a cached tensor would lose its gradient.
    assert image.look is None


def test_likeness_is_high_where_features_resemble_the_clicked_ones():
    """Similarity is high where features resemble the clicked features: foreground is left, background is right."""
    look = torch.zeros(1, 2, 4, 8)
    look[:, 0, :, :4], look[:, 1, :, 4:] = 1.0, 1.0
    points, labels = torch.tensor([[[[3.0, 3.0], [28.0, 9.0], [0.0, 0.0]]]]), torch.tensor([[[1, 0, -1]]])
    no_box = torch.full((1, 1, 4), float("nan"))
    prompts = Queries(torch.zeros(1, 0, 1, 2), torch.zeros(1, 0, dtype=torch.bool), points, labels, no_box)
    near = _nearness(prompts, (16, 32), (4, 8), look)
    inside, outside, box = _likeness(look, near, prompts, (16, 32))[0, 0]
    left = torch.zeros(4, 8)
    left[:, :4] = 1
    torch.testing.assert_close(inside, left)
    torch.testing.assert_close(outside, 1 - left)
    assert not box.any(), "without a box, the similarity to a box must be 0"
    prompts.boxes, prompts.labels = torch.tensor([[[0.0, 0.0, 32.0, 16.0]]]), torch.tensor([[[-1, -1, -1]]])
    inside, outside, box = _likeness(look, _nearness(prompts, (16, 32), (4, 8), look), prompts, (16, 32))[0, 0]
    assert not inside.any(), "without a click, the similarity to clicks must be 0"
    assert not outside.any()
    torch.testing.assert_close(box, torch.full((4, 8), 0.5**0.5))


@pytest.mark.parametrize("change", ["points", "labels", "boxes"])
def test_each_part_of_a_prompt_changes_the_mask(head, features, change):
    a, b = queries(), queries()
    if change == "points":
        b.points = b.points + 20
    elif change == "labels":
        b.labels = 1 - b.labels
    else:
        b.boxes = b.boxes + 20
    logits = [head(features, q)[0] for q in (a, b)]
    moved = (logits[0] - logits[1]).abs().amax((0, 2, 3)) > 1e-4
    assert moved.tolist() == [False, False, change != "boxes", True, change != "boxes"]


def test_points_and_boxes_are_converted_to_prepared_pixels():
    """Points and boxes of a 100 x 50 image are converted to the pixels of the prepared image.

    One image is padded to 128 x 64; the other is also squeezed afterwards.
    """
    transforms = [ImageTransform((50, 100), (64, 128), (64, 64)), ImageTransform((50, 100), (64, 128), (64, 128))]
    given = {
        "masks": torch.zeros(1, 50, 100, dtype=torch.bool),
        "points": torch.tensor([[[99.0, 49.0]]]),
        "labels": torch.ones(1, 1, dtype=torch.int64),
        "boxes": torch.tensor([[0.0, 0.0, 100.0, 50.0]]),
    }
    twice = {**given, "points": given["points"].repeat(1, 2, 1), "labels": given["labels"].repeat(1, 2)}
    points, labels, boxes = prepared_prompts([given, twice], transforms)
    assert points[0, 0, 0].tolist() == [49.25, 49.0]
    assert points[1, 0, 1].tolist() == [99.0, 49.0]
    assert labels.tolist() == [[[1, -1]], [[1, 1]]]
    assert boxes[0, 0].tolist() == [-0.25, 0.0, 50.25, 50.0]


def test_the_encoder_reads_the_first_and_the_last_pixel_of_a_box():
    """A half-open box becomes two corner tokens, its first and its last pixel, as the shipped weights expect."""
    transform = ImageTransform((50, 100), (64, 128), (64, 64))
    box = transform.boxes(torch.tensor([[[3.0, 2.0, 9.0, 8.0], [float("nan")] * 4]]))
    words = torch.zeros(1, 0, 1, 2), torch.zeros(1, 0, dtype=torch.bool)
    xy, kinds = _points(Queries(*words, boxes=box))
    corners = transform.points(torch.tensor([[3.0, 2.0], [8.0, 7.0]]))
    torch.testing.assert_close(xy[0, 0], corners, atol=1e-5, rtol=0)
    assert kinds.tolist() == [[[2, 3], [-1, -1]]]
    near = _nearness(Queries(*words, boxes=box), (64, 64), (64, 64), xy)[0, 0, 0]
    inside = torch.nonzero(near > 0)
    assert inside.amin(0).tolist() == [2, 1], (
        "the box must start at row 2 and, as 128 columns are reduced to 64, at column 1"
    )
    assert inside.amax(0).tolist() == [7, 4]


def test_terms_equal_their_naive_twin():
    g = torch.Generator().manual_seed(3)
    logits, iou_pred = torch.randn(2, 3, 6, 8, generator=g), torch.rand(2, 3, generator=g)
    target = torch.rand(2, 3, 6, 8, generator=g) > 0.6
    target[1, 2] = False  # this target has no pixel, so it has no loss
    known = (torch.rand(2, 1, 6, 8, generator=g) > 0.1).expand(2, 3, 6, 8)
    masks, errors = [], []
    for b in range(2):
        mask, error = [], []
        for k in range(3):
            if not target[b, k].any():
                continue
            p, t, w = logits[b, k].sigmoid(), target[b, k].float(), known[b, k].float()
            bce = -(t * p.log() + (1 - t) * (1 - p).log())
            dice = 1 - (2 * (p * w * t).sum() + 1) / ((p * w).sum() + t.sum() + 1)
            mask.append((bce * w).sum() / w.sum() + dice)
            guess = (logits[b, k] > 0) & known[b, k]
            iou = (guess & target[b, k]).sum() / (guess | target[b, k]).sum()
            error.append((iou_pred[b, k] - iou) ** 2)
        masks.append(sum(mask) / len(mask))
        errors.append(sum(error) / len(error))
    got = prompt_terms(logits, iou_pred, target, known)
    torch.testing.assert_close(got[0], sum(masks) / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], sum(errors) / 2, atol=1e-5, rtol=1e-5)
    nothing = prompt_terms(logits, iou_pred, torch.zeros_like(target), known)
    assert [x.item() for x in nothing] == [0, 0]


def prompt_config():
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.PROMPTS, cfg.MODEL.LOSS.PROMPT = True, 1.0
    return cfg


@pytest.mark.slow
def test_training_on_prompts_improves_masks():
    """A few training steps on four drawn scenes improve the masks of clicks and boxes."""
    torch.manual_seed(0)
    np.random.seed(0)
    model, sampler, samples = SkySenseO(prompt_config()).train(), PromptSampler(4), drawn_samples(4)
    optimizer = build_optimizer(model, [[".", 1.0, 0.0]], 3e-3)
    before = evaluate_prompts(model, [lambda s=s: s for s in samples])
    for _ in range(50):
        batch = [{**s, "prompts": sampler(s["sem_seg"].numpy())} for s in samples]
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert {"loss_prompt_mask", "loss_prompt_quality"} <= set(losses)
    after = evaluate_prompts(model, [lambda s=s: s for s in samples])
    assert model.training, "evaluation must set the model back to training mode"
    assert after["parts"] == before["parts"] > 10
    assert after["box"] > before["box"] + 0.2
    assert after["click1"] > before["click1"] + 0.05


def test_samples_without_prompts_are_an_error():
    with pytest.raises(ValueError, match="needs samples with prompts: set INPUT.PROMPTS above 0"):
        SkySenseO(prompt_config()).train()(drawn_samples(1))


def test_an_image_is_encoded_once_for_several_prompts(monkeypatch):
    torch.manual_seed(0)
    predictor = Predictor(SkySenseO(prompt_config()))
    calls, encode = [], predictor.model.tower.encode_image
    monkeypatch.setattr(predictor.model.tower, "encode_image", lambda x: calls.append(1) or encode(x))
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    encoded = predictor.set_image(image)
    mask, iou_pred = encoded.prompt([(10, 20), (60, 40)], [1, 0])
    assert mask.shape == (50, 70)
    assert mask.dtype == bool
    assert 0 <= iou_pred <= 1
    encoded.prompt(box=(5, 5, 40, 40))
    assert len(calls) == 1
    predictor.set_image(image[:30])
    again, _ = encoded.prompt([(10, 20), (60, 40)], [1, 0])
    assert (again == mask).all()


def test_a_box_selects_a_region_of_the_label_maps_if_the_config_says_so():
    torch.manual_seed(0)
    cfg = prompt_config()
    cfg.MODEL.SEM_SEG_HEAD.CLASS_MAPS = True
    encoded = Predictor(SkySenseO(cfg)).set_image(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    box = (5, 5, 40, 40)
    mask, iou_pred = encoded.prompt(box=box)
    assert iou_pred is None
    maps = [encoded.predict_text(Vocabulary.of(words), "labels")["labels"].numpy() for words in CLASSES]
    largest = [np.bincount(labels[mask]).max() / mask.sum() for labels in maps]
    assert max(largest) > 0.9, "but for its border, the mask has a single class in one of the label maps"
    assert (mask & encoded.box_mask(box) == mask).all()
    again, iou_pred = encoded.prompt([(10, 20)], [1], box)
    assert iou_pred is None, (
        "with class maps, a mask of clicks is not the decoder's, whose predicted IoU says nothing of it"
    )
    assert (again != mask).any()


@pytest.mark.parametrize("side", [1, 4, 8, 12, 20])
def test_a_small_box_has_a_mask(mini, side):
    image = mini.set_image("demo/yellowstone_0.15m.jpg")
    for x, y in ((200, 120), (403, 311), (0, 0)):
        box = (x, y, x + side, y + side)
        mask, _ = image.prompt(box=box)
        assert mask.any()
        assert not (mask & ~image.box_mask((max(0, x - 4), max(0, y - 4), x + side + 4, y + side + 4))).any()


def test_a_click_inside_a_box_does_not_leave_it(mini):
    image = mini.set_image("demo/yellowstone_0.15m.jpg")
    mask, _ = image.prompt([(320, 330)], [1], (300, 300, 345, 358))
    assert mask[330, 320]
    assert not (mask & ~image.box_mask((296, 296, 349, 362))).any(), "but for the border of the mask grid"


def test_pixels_without_data_are_in_no_mask(mini):
    rgb = np.asarray(Image.open("demo/yellowstone_0.4m.jpg").convert("RGB"))
    valid = np.ones(rgb.shape[:2], bool)
    valid[:60, :60] = False
    image = PromptedImage(mini.model, rgb, valid=valid)
    for prompt in (
        {"points": [(20, 20)], "labels": [1]},
        {"points": [(90, 90)], "labels": [1]},
        {"box": (0, 0, 99, 99)},
    ):
        mask, _ = image.prompt(**prompt)
        assert not (mask & ~valid).any()
        assert mask.any(), "other pixels are"


@pytest.mark.parametrize("apart", [1, 3, 4, 6])
def test_a_background_click_near_a_foreground_click_does_not_remove_the_mask(mini, apart):
    image = mini.set_image("demo/yellowstone_0.15m.jpg")
    mask, _ = image.prompt([(300, 200), (300 + apart, 200)], [1, 0])
    assert mask.any()


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({}, "neither a point nor a box"),
        ({"points": [(1, 1)]}, "1 points with 0 labels"),
        ({"points": [(1, 1)], "labels": [2]}, r"point labels \[2\]: they must be 1"),
        ({"points": [(70, 1)], "labels": [1]}, r"\(70, 1\) lies outside the image, which is 70 x 50"),
        ({"box": (9, 9, 3, 20)}, r"box \(9, 9, 3, 20\) is empty: give x0, y0, x1, y1 with x0 < x1"),
        ({"box": (9, 9, 9, 20)}, "is empty"),
        ({"box": (9, 9, 71, 20)}, "extends beyond the image, which is 70 x 50"),
    ],
)
def test_wrong_prompts_are_errors(prompt, says):
    predictor = Predictor(SkySenseO(prompt_config()))
    image = predictor.set_image(np.zeros((50, 70, 3), np.uint8))
    with pytest.raises(ValueError, match=says):
        image.prompt(**prompt)


def test_prompts_for_weights_without_prompts_are_an_error(words_only):
    image = words_only.set_image(np.zeros((50, 70, 3), np.uint8))
    with pytest.raises(ValueError, match="take words only"):
        image.prompt([(1, 1)], [1])


def test_a_click_returns_only_the_connected_part_that_it_is_in(monkeypatch):
    """A predicted mask may also cover similar objects elsewhere; these are returned only if they are clicked, too."""
    logits = -torch.ones(1, 16, 16)
    logits[0, 2:6, 2:6] = logits[0, 10:14, 10:14] = 1
    image = PromptedImage(SkySenseO(prompt_config()).eval(), np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(image, "predict_prompts", lambda *prompt: (logits, torch.zeros(1)))
    both, _ = image.prompt(box=(0, 0, 64, 64))
    left, _ = image.prompt([(16, 16), (48, 48)], [1, 0])
    assert both[48, 48]
    assert left[16, 16]
    assert not left[32:, 32:].any()
    assert (left[:32, :32] == both[:32, :32]).all()
    assert (image.prompt([(16, 16), (48, 48)], [1, 1])[0] == both).all()
    assert (image.prompt([(30, 60)], [1])[0] == both).all()  # a click outside both parts returns the whole mask
