"""Tests that our SAM 3 agrees with transformers' model and post-processing on tiny random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_sam3 import SIDE, make_detector, make_whole
from transformers import Sam3Model, Sam3Processor, Sam3TrackerModel
from transformers.utils import logging

from skysense_o import Predictor
from skysense_o.modeling.sam3_tower import Sam3Answer, Sam3Embedding, Sam3Tower
from skysense_o.modeling.tower import Tower
from skysense_o.sam3 import Sam3
from skysense_o.vocabulary import Vocabulary

logging.disable_progress_bar()
SIZES = ((45, 71), (64, 33))
WORDS = ["road", "tree", "water", "storage tank", "a very long wooden bridge over the river"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def theirs(folder):
    return Sam3Model.from_pretrained(folder).eval(), Sam3Processor.from_pretrained(folder)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in SIZES]


def sam3(folder, **keys) -> Sam3:
    return Sam3(tower=Sam3Tower.from_pretrained(folder), **keys).eval()


def words(count: int) -> list[str]:
    return [*WORDS, *(f"thing {i}" for i in range(count))][:count]


def asked(model: Sam3, images, vocabulary, reduce="probabilities"):
    return model.predict([{"image": image, "vocabulary": vocabulary} for image in images], reduce)


ANSWERS = {}


@torch.no_grad()
def direct(theirs, image, phrase):
    """Run transformers' model as documented, on one image and one phrase; the result is cached for all tests."""
    key = (image.shape, phrase)
    if key in ANSWERS:
        return ANSWERS[key]
    model, processor = theirs
    inputs = processor(images=image, text=phrase, return_tensors="pt")
    inputs.pop("original_sizes")
    ANSWERS[key] = model(**inputs)
    return ANSWERS[key]


def test_random_weights_tell_words_and_images_apart(theirs, images):
    """The random weights distinguish words and images; otherwise a model with constant output would pass all tests."""
    out = [direct(theirs, image, phrase) for image in images for phrase in WORDS[:2]]
    for a, b in ((0, 1), (0, 2)):
        assert (out[a].presence_logits - out[b].presence_logits).abs().min() > 1e-3
        assert (out[a].semantic_seg - out[b].semantic_seg).abs().max() > 1e-2
        assert (out[a].pred_logits - out[b].pred_logits).abs().max() > 1e-2


@pytest.mark.parametrize("count", [1, 3, 40])
def test_semantic_maps_are_theirs(folder, theirs, images, count):
    """Semantic maps equal transformers' maps, in chunks of three pairs and for two images of odd sizes."""
    model = sam3(folder, fuse="semantic", presence="none", phrase_chunk=3)
    found = asked(model, images, Vocabulary.of(words(count)))
    for image, prediction in zip(images, found):
        for c, phrase in enumerate(words(count)):
            out = direct(theirs, image, phrase)
            (one,) = theirs[1].post_process_semantic_segmentation(
                out, [image.shape[1:]], return_segmentation_scores=True
            )
            torch.testing.assert_close(prediction["sem_seg"][c], one.segmentation_scores[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                prediction["presence"][c], out.presence_logits.sigmoid()[0, 0], atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("count", [1, 3, 40])
def test_instances_are_theirs(folder, theirs, images, count):
    model, vocabulary = sam3(folder, phrase_chunk=3), Vocabulary.of(words(count))
    embedding, _, _ = model.embed_images(images)
    sizes = [tuple(image.shape[1:]) for image in images]
    total = 0
    for image, found in zip(images, model.instances(embedding, [vocabulary] * 2, sizes, threshold=0.2)):
        for c, phrase in enumerate(words(count)):
            out = direct(theirs, image, phrase)
            (want,) = theirs[1].image_processor.post_process_instance_segmentation(
                out, threshold=0.2, target_sizes=[image.shape[1:]]
            )
            mine = found.labels == c
            torch.testing.assert_close(found.scores[mine], want["scores"], atol=1e-5, rtol=0)
            torch.testing.assert_close(found.boxes[mine], want["boxes"], atol=1e-3, rtol=1e-5)  # boxes are in pixels
            if len(want["scores"]):
                # Rounding may decide a pixel whose probability is 0.5.
                assert (found.masks[mine] != want["masks"].bool()).float().mean() < 1e-3
            total += len(want["scores"])
    assert total > count


@pytest.mark.parametrize("fuse", ["instances", "max"])
def test_a_class_is_the_best_of_its_phrases_fused_and_gated(folder, theirs, images, fuse):
    model = sam3(folder, fuse=fuse, presence="window")
    vocabulary = Vocabulary.of(["road|tree", "water"])
    found = asked(model, images, vocabulary)
    for image, prediction in zip(images, found):
        maps = []
        for phrase in ("road", "tree", "water"):
            out = direct(theirs, image, phrase)
            best = torch.zeros(out.pred_masks.shape[-2:])
            for q in range(out.pred_masks.shape[1]):
                best = torch.maximum(best, out.pred_masks[0, q].sigmoid() * out.pred_logits[0, q].sigmoid())
            if fuse == "max":
                best = torch.maximum(best, out.semantic_seg[0, 0].sigmoid())
            maps.append(best * out.presence_logits[0, 0].sigmoid())
        want = torch.stack([torch.maximum(maps[0], maps[1]), maps[2]])
        want = F.interpolate(want[None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(prediction["sem_seg"], want, atol=1e-5, rtol=0)


def test_labels_are_the_best_class_and_chunks_change_nothing(folder, images):
    vocabulary = Vocabulary.of(words(9))
    every = asked(sam3(folder, phrase_chunk=1000), images, vocabulary)
    few = asked(sam3(folder, phrase_chunk=2), images, vocabulary, "labels")
    for all_classes, labels in zip(every, few):
        score, best = all_classes["sem_seg"].max(0)
        torch.testing.assert_close(labels["score"], score, atol=1e-5, rtol=0)
        sure = all_classes["sem_seg"].topk(2, 0).values.diff(dim=0)[0] < -1e-5
        assert torch.equal(labels["labels"][sure], best[sure])


def test_forty_classes_in_chunks_of_seven_are_those_of_one_chunk(folder, images, monkeypatch):
    """Forty classes in chunks of seven give the same result as in one chunk; the decoder gets one chunk at a time."""
    vocabulary, maps, found = Vocabulary.of(words(40)), [], []
    for chunk in (7, 1000):
        model, pairs = sam3(folder, phrase_chunk=chunk), []
        answer = model.tower.answer

        def counted(embedding, tokens, valid, answer=answer, pairs=pairs):
            pairs.append(len(tokens))
            return answer(embedding, tokens, valid)

        monkeypatch.setattr(model.tower, "answer", counted)
        maps.append(asked(model, images, vocabulary))
        assert pairs == ([7] * 11 + [3] if chunk == 7 else [80])
        embedding, _, _ = model.embed_images(images)
        found.append(model.instances(embedding, [vocabulary] * 2, list(SIZES), threshold=0.2))
    for one, other in zip(*maps):
        torch.testing.assert_close(one["sem_seg"], other["sem_seg"], atol=1e-5, rtol=0)
        torch.testing.assert_close(one["presence"], other["presence"], atol=1e-5, rtol=0)
    for one, other in zip(*found):
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 40])
@torch.no_grad()
def test_mask_probabilities_boxes_and_scores_are_theirs_before_any_threshold(folder, theirs, images, count):
    """Before any threshold, mask probabilities, boxes (shares of the image's sides) and scores equal transformers'."""
    model = sam3(folder, phrase_chunk=3)
    embedding, _, _ = model.embed_images(images)
    for pairs, answer in model._answers(embedding, [Vocabulary.of(words(count))] * 2):
        for n, (b, t) in enumerate(pairs):
            out = direct(theirs, images[b], words(count)[t])
            for mine, want in (
                (answer.masks[n].sigmoid(), out.pred_masks[0].sigmoid()),
                (answer.boxes[n], out.pred_boxes[0]),
                (answer.scores[n] * answer.presence[n], (out.pred_logits.sigmoid() * out.presence_logits.sigmoid())[0]),
            ):
                torch.testing.assert_close(mine, want, atol=1e-5, rtol=0)


def test_weak_phrases_count_as_absent(folder, theirs, images):
    present = {p: float(direct(theirs, images[0], p).presence_logits.sigmoid()) for p in WORDS}
    limit = sorted(present.values())[2]
    model = sam3(folder, weak_phrase=limit - 1e-4, instance_score=0.0)
    vocabulary = Vocabulary.of(WORDS)
    (found,) = asked(model, images[:1], vocabulary)
    weak = torch.tensor([present[p] < limit - 1e-4 for p in WORDS])
    assert weak.sum() == 2
    assert torch.equal(found["sem_seg"].amax((1, 2)) == 0, weak)
    embedding, _, _ = model.embed_images(images[:1])
    labels = model.instances(embedding, [vocabulary], [SIZES[0]])[0].labels
    assert set(labels.tolist()) == set((~weak).nonzero()[:, 0].tolist())


def test_two_phrases_of_a_class_give_an_instance_once_and_background_gives_none(folder, images):
    model = sam3(folder, instance_score=0.0)
    embedding, _, _ = model.embed_images(images[:1])

    def count(vocabulary) -> list[int]:
        return model.instances(embedding, [vocabulary], [SIZES[0]])[0].labels.bincount(minlength=2).tolist()

    alone = count(Vocabulary.of(["road", "tree"]))
    assert alone[0] == alone[1] == 6  # the detector has one instance per query
    assert count(Vocabulary.of(["road|tree"]))[0] < 12
    assert count(Vocabulary.of(["road"], ["tree"])) == [6, 0]


def counting(monkeypatch, module, name: str) -> list[int]:
    """Record the number of rows in each call of a method."""
    calls, method = [], getattr(module, name)

    def counted(*args, **kwargs):
        first = next(iter(kwargs.values()), None) if not args else args[0]
        calls.append(len(first))
        return method(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_the_image_is_encoded_once_and_each_phrase_once_per_weights(folder, images, monkeypatch):
    model = sam3(folder, phrase_chunk=2)
    seen = counting(monkeypatch, model.tower.detector, "get_vision_features")
    read = counting(monkeypatch, model.tower.detector, "get_text_features")
    first = asked(model, images, Vocabulary.of(["road|street", "tree"]))
    assert seen == [2]
    assert sum(read) == 4  # three phrases, and the word "visual", which stands for examples
    again = asked(model, images, Vocabulary.of(["road|street", "tree", "water"]))
    assert (seen, sum(read)) == ([2, 2], 5)
    torch.testing.assert_close(first[0]["sem_seg"], again[0]["sem_seg"][:2], atol=1e-6, rtol=0)
    with torch.no_grad():
        model.tower.detector.text_projection.weight.mul_(0.5)
    changed = asked(model, images, Vocabulary.of(["road|street", "tree"]))
    assert sum(read) == 9
    assert not torch.allclose(first[0]["sem_seg"], changed[0]["sem_seg"], atol=1e-4)


def test_a_batch_changes_nothing(folder, images):
    model, vocabulary = sam3(folder), Vocabulary.of(["road", "tree"])
    for image, together in zip(images, asked(model, images, vocabulary)):
        alone = asked(model, [image], vocabulary)[0]
        torch.testing.assert_close(together["sem_seg"], alone["sem_seg"], atol=1e-5, rtol=0)


def test_keys_out_of_range(folder):
    tower = Sam3Tower.from_pretrained(folder)
    with pytest.raises(ValueError, match="unknown MODEL.SAM3.FUSE 'sum': choose one of semantic, instances, max"):
        Sam3(tower=tower, fuse="sum")
    with pytest.raises(ValueError, match="unknown MODEL.SAM3.PRESENCE 'both': choose one of none, window, image"):
        Sam3(tower=tower, presence="both")
    with pytest.raises(ValueError, match="MODEL.SAM3.WEAK_PHRASE 1.5 is out of range"):
        Sam3(tower=tower, weak_phrase=1.5)


class MadeTower(Tower):
    """A fake tower whose object presence equals the image's mean brightness."""

    divisor, stride, dim, grid, input_size, pyramid_channels, tracker = 1, 14, 4, 16, SIDE, (), None

    def __init__(self) -> None:
        super().__init__((127.5,) * 3, (127.5,) * 3)
        self.word = torch.nn.Parameter(torch.zeros(1))

    def text_parameters(self):
        return [self.word]

    def embed(self, images):
        bright = torch.stack([image.float().mean() / 255 for image in images]).view(-1, 1, 1, 1)
        return Sam3Embedding((bright,) * 4, (bright,) * 4, bright)

    def encode_phrases(self, phrases):
        return torch.zeros(len(phrases), 1, 4), torch.ones(len(phrases), 1, dtype=torch.bool)

    def answer(self, embedding, tokens, valid):
        n, even = len(tokens), torch.full((len(tokens), 16, 16), 0.8)
        return Sam3Answer(
            even, torch.full((n, 1, 16, 16), -9.0), torch.zeros(n, 1), torch.zeros(n, 1, 4), embedding.maps[0].view(n)
        )


def halves() -> np.ndarray:
    """Return an image four windows wide, dark on the left and bright on the right."""
    image = np.full((SIDE, 4 * SIDE, 3), 26, np.uint8)
    image[:, 2 * SIDE :] = 230
    return image


def test_presence_of_windows_leaves_no_seam():
    """The presence score is blended over the overlap of windows, so no seam is visible.

    Presence is 0.1 in the windows on the left and 0.9 in those on the right. The blending weight is a Hann ramp, whose
    greatest slope is pi/2 times the difference divided by the ramp's length.
    """
    predictor = Predictor(Sam3(tower=MadeTower(), presence="window"))
    score = predictor(halves(), ["ship", "tree"], window=SIDE, overlap=SIDE // 2).score
    left, right = 0.8 * 26 / 255, 0.8 * 230 / 255
    np.testing.assert_allclose(score[:, : SIDE // 2], left, atol=1e-5)
    np.testing.assert_allclose(score[:, -SIDE // 2 :], right, atol=1e-5)
    steps = np.diff(score, axis=1)
    assert steps.min() > -1e-6
    assert steps.max() < 1.1 * (right - left) * np.pi / 2 / (SIDE // 2)
    np.testing.assert_allclose(score - score[:1], 0, atol=1e-6)


def test_presence_of_the_image_is_the_same_everywhere():
    predictor = Predictor(Sam3(tower=MadeTower(), presence="image"))
    score = predictor(halves(), ["ship", "tree"], window=SIDE, overlap=SIDE // 2).score
    np.testing.assert_allclose(score, 0.8 * 128 / 255, atol=1e-5)
    none = Predictor(Sam3(tower=MadeTower(), presence="none"))(halves(), ["ship", "tree"], window=SIDE)
    np.testing.assert_allclose(none.score, 0.8, atol=1e-5)


def test_windows_of_one_square_are_the_whole_image(folder):
    """An image of the model's input size has a single window, which gives the result of the whole image."""
    predictor = Predictor(sam3(folder))
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    windows, once = (predictor(image, "road,tree,water", window=window) for window in (SIDE, None))
    assert predictor.model.stride == 2  # 28 cells of 2 pixels, because 16 cells of 3.5 pixels would not fit windows
    # Scores differ a little, because windows are interpolated twice.
    assert np.abs(windows.score - once.score).mean() < 5e-3
    with pytest.raises(ValueError, match=f"a window of 64 pixels does not fit the model: it takes {SIDE} pixels only"):
        predictor(image, "road", window=64)


@torch.no_grad()
def test_clicks_and_boxes_are_the_trackers(whole, images):
    model = sam3(whole)
    tracker, _ = Sam3TrackerModel.from_pretrained(
        whole, output_loading_info=True, key_mapping={r"^tracker_model\.": ""}
    )
    pixels = model.tower.image_processor(images, return_tensors="pt").pixel_values
    embedding, _, _ = model.embed_images(images)
    none = torch.full((1, 4), float("nan"))
    one, two = torch.tensor([[[9.0, 20.0]]]), torch.tensor([[[9.0, 20.0], [30.0, 31.0]]])
    box = torch.tensor([[5.0, 6.0, 40.0, 33.0]])
    cases = [
        (one, torch.tensor([[1]]), none, {"input_points": one[None], "input_labels": torch.tensor([[[1]]])}, True),
        (
            two,
            torch.tensor([[1, 0]]),
            none,
            {"input_points": two[None], "input_labels": torch.tensor([[[1, 0]]])},
            False,
        ),
        (two, torch.tensor([[-1, -1]]), box, {"input_boxes": box[None]}, False),
    ]
    for b in range(2):
        for points, labels, boxes, given, several in cases:
            want = tracker.eval()(pixel_values=pixels[b : b + 1], **given, multimask_output=several)
            best = int(want.iou_scores[0, 0].argmax())
            logits, iou = model.tower.track(embedding.of([b]), points, labels, boxes)
            torch.testing.assert_close(logits[0], want.pred_masks[0, 0, best], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(iou[0], want.iou_scores[0, 0, best], atol=1e-5, rtol=0)


def test_prompts_through_the_predictor(whole, folder):
    predictor = Predictor(sam3(whole))
    image = np.random.default_rng(0).integers(0, 256, (45, 71, 3), dtype=np.uint8)
    seen = predictor.set_image(image)
    mask, iou = seen.prompt(points=[(10, 10), (60, 40)], labels=[1, 0])
    assert mask.shape == (45, 71)
    assert 0 <= iou <= 1
    several, _ = seen.predict_prompts(
        torch.tensor([[[10.0, 10.0]], [[60.0, 40.0]]]), torch.tensor([[1], [1]]), torch.full((2, 4), float("nan"))
    )
    assert several.shape == (2, 16, 16)
    with pytest.raises(ValueError, match="these weights take words only"):
        Predictor(sam3(folder)).set_image(image).prompt(points=[(10, 10)], labels=[1])


@torch.no_grad()
def test_a_region_as_example_is_a_box_of_the_detector(folder, theirs, images):
    """In its own image, an example region gives SAM 3's result for a box without words; it also works on others."""
    model, (their_model, processor) = sam3(folder, fuse="semantic", presence="none"), theirs
    rgb = images[0].permute(1, 2, 0).numpy()
    predictor = Predictor(model)
    seen = predictor.set_image(rgb)
    mask = np.zeros(SIZES[0], bool)
    mask[10:30, 20:50] = True
    vocabulary = Vocabulary.parse("road").with_examples({"like this": seen.embed(mask[None])[0]})
    found = predictor(seen, vocabulary, probabilities=True).probabilities
    inputs = processor(images=images[0], input_boxes=[[[20, 10, 50, 30]]], return_tensors="pt")
    sizes = inputs.pop("original_sizes").tolist()
    (want,) = processor.post_process_semantic_segmentation(
        their_model(**inputs), sizes, return_segmentation_scores=True
    )
    np.testing.assert_allclose(found[1], want.segmentation_scores[0], atol=1e-5)
    elsewhere = predictor(images[1].permute(1, 2, 0).numpy(), vocabulary, probabilities=True).probabilities
    assert elsewhere.shape == (2, *SIZES[1])


def test_what_has_no_vector_says_so(folder):
    seen = Predictor(sam3(folder)).set_image(np.zeros((40, 40, 3), np.uint8))
    region = np.ones((1, 40, 40), bool)
    ranked = seen.name(region, Vocabulary.parse("road,tree"))[0]
    assert {name for name, _ in ranked} == {"road", "tree"}
    probabilities = seen.class_probabilities(Vocabulary.parse("road,tree")).mean((1, 2))
    assert dict(ranked) == pytest.approx(dict(zip(("road", "tree"), probabilities.tolist())), abs=1e-3)
    with pytest.raises(ValueError, match="SAM 3 has no vectors to compare a region with words"):
        seen.cosines(seen.embed(region), Vocabulary.parse("road,tree"))
    with pytest.raises(ValueError, match="SAM 3 has no vector of an image"):
        seen.model.tower.encode_image(torch.zeros(1, 3, SIDE, SIDE))


def test_bf16_agrees(folder):
    image = np.random.default_rng(0).integers(0, 256, (45, 71, 3), dtype=np.uint8)
    full, half = (
        Predictor.from_pretrained(folder, "cpu", precision=precision)(image, "road,tree", probabilities=True)
        for precision in ("fp32", "bf16")
    )
    assert np.abs(full.probabilities - half.probabilities).mean() < 0.02
