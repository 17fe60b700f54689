"""Tests of the SAM-style decoder: a mask does not depend on the other queries."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from skysense_o.checkpoint import WeightsError, load_sam_decoder
from skysense_o.modeling import Features, Queries
from skysense_o.modeling.sam_head import SAMMaskHead
from skysense_o.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return SAMMaskHead(dim=24, pyramid_channels=(8, 8), width=32, depth=2, heads=4, mlp=64, shared=3).eval()


@pytest.fixture(scope="module")
def features():
    g = torch.Generator().manual_seed(1)
    pyramid = (torch.randn(2, 8, 10, 14, generator=g), torch.randn(2, 8, 20, 28, generator=g))
    dense = torch.randn(2, 24, 5, 7, generator=g)
    return Features(dense, pyramid, dense.mean((2, 3)))


def queries(phrases: int, templates: int = 1) -> Queries:
    text = torch.randn(2, phrases, templates, 24, generator=torch.Generator().manual_seed(2))
    return Queries(torch.nn.functional.normalize(text, dim=-1), torch.ones(2, phrases, dtype=torch.bool))


def test_shapes(head, features):
    logits, presence, iou_pred = head(features, queries(6, templates=3))
    assert logits.shape == (2, 6, 20, 28)
    assert presence.shape == (2, 6)
    assert iou_pred is None


def test_permuted_phrases_permute_masks(head, features):
    q, order = queries(6), torch.tensor([3, 1, 5, 0, 2, 4])
    logits, presence, _ = head(features, q)
    again, presence_again, _ = head(features, Queries(q.text[:, order], q.valid))
    torch.testing.assert_close(again, logits[:, order], atol=1e-6, rtol=0)
    torch.testing.assert_close(presence_again, presence[:, order], atol=1e-6, rtol=0)


def test_added_phrases_change_no_mask(head, features):
    q = queries(40)
    few = head(features, Queries(q.text[:, :3], q.valid[:, :3]))[0]
    many = head(features, q)[0]
    torch.testing.assert_close(many[:, :3], few, atol=1e-6, rtol=0)


def test_different_phrases_give_different_masks(head, features):
    logits = head(features, queries(2))[0]
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_are_exact(head, features, chunk):
    whole, chunked = head(features, queries(40))[0], head(features, queries(40), chunk)[0]
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)


def test_prompts_for_a_decoder_without_them_are_an_error(head, features):
    q = queries(2)
    q.boxes = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"3 points or boxes were given.*takes words only"):
        head(features, q)


def test_ten_classes_cost_little_more_than_one():
    """At the real sizes, ten classes take less than 1.1 times the FLOPs of one class, as they share image features."""
    head = SAMMaskHead(dim=384, pyramid_channels=(96, 96), width=256, depth=2, heads=8, mlp=2048, shared=5)
    pyramid = (torch.randn(1, 96, 64, 64), torch.randn(1, 96, 128, 128))
    features = Features(torch.randn(1, 384, 32, 32), pyramid, torch.randn(1, 384))
    cost = {}
    for names in (1, 10):
        with FlopCounterMode(display=False) as counter:
            head(features, Queries(torch.randn(1, names, 1, 384), torch.ones(1, names, dtype=torch.bool)))
        cost[names] = counter.get_total_flops()
    assert cost[10] < 1.1 * cost[1]


def test_sams_decoder_weights_fit():
    """At the default sizes, our transformer, upscaling and hypernetwork have the shapes of SAM's weights."""
    from segment_anything.modeling import MaskDecoder as SAMDecoder
    from segment_anything.modeling import TwoWayTransformer

    sam = SAMDecoder(
        transformer_dim=256, transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    )
    ours = SAMMaskHead(dim=384, pyramid_channels=(96, 96), width=256, depth=2, heads=8, mlp=2048, shared=5)
    for theirs, part in (
        (sam.transformer, ours.transformer),
        (sam.output_upscaling[0], ours.up1),
        (sam.output_upscaling[1], ours.norm),
        (sam.output_upscaling[3], ours.up2),
        (sam.output_hypernetworks_mlps[0], ours.hypernetwork),
    ):
        part.load_state_dict(theirs.state_dict())
    assert sam.iou_token.weight.shape[0] + sam.mask_tokens.weight.shape[0] == ours.shared_tokens.weight.shape[0]


def sam(width: int = 256):
    """Build Segment Anything with a minimal image encoder."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    transformer = TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8)
    return Sam(
        ImageEncoderViT(img_size=32, embed_dim=8, depth=1, num_heads=1, out_chans=width),
        PromptEncoder(width, (2, 2), (32, 32), 4),
        MaskDecoder(transformer_dim=width, transformer=transformer),
    )


def test_a_decoder_starts_from_a_checkpoint_of_segment_anything(tmp_path):
    theirs = sam().state_dict()
    torch.save(theirs, tmp_path / "sam_vit.pth")
    sizes = {"width": 256, "depth": 2, "heads": 8, "mlp": 2048, "shared": 5}
    ours = SAMMaskHead(dim=24, pyramid_channels=(8, 8), prompts=True, **sizes)
    report = load_sam_decoder(ours, tmp_path / "sam_vit.pth")
    assert not report.misshaped
    state, decoder = ours.state_dict(), "mask_decoder."
    tokens = [theirs[decoder + "iou_token.weight"], theirs[decoder + "mask_tokens.weight"]]
    assert torch.equal(state["shared_tokens.weight"], torch.cat(tokens))
    kinds = [theirs[f"prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)]
    assert torch.equal(state["prompts.kind.weight"], torch.cat(kinds))
    own = {"transformer": "transformer", "up1": "output_upscaling.0", "norm": "output_upscaling.1"}
    for part, name in {**own, "up2": "output_upscaling.3", "hypernetwork": "output_hypernetworks_mlps.0"}.items():
        for key, tensor in getattr(ours, part).state_dict().items():
            assert torch.equal(tensor, theirs[f"{decoder}{name}.{key}"])
    assert "image_projection.0.weight" in report.new


def test_a_checkpoint_that_is_not_sams_or_does_not_fit(tmp_path):
    head = SAMMaskHead(dim=24, pyramid_channels=(8, 8), width=32, depth=1, heads=4, mlp=64, shared=3)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no decoder of Segment Anything that fits.*0 tensors fit"):
        load_sam_decoder(head, tmp_path / "other.pth")
    torch.save(sam().state_dict(), tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match="misshaped: .*shared_tokens.weight.*keep the defaults of WIDTH"):
        load_sam_decoder(head, tmp_path / "sam.pth")


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_a_batch_of_two_equals_two_of_one(small_model):
    """A batch of two images with different sizes and vocabularies gives the same results as each image alone."""
    samples = [
        {"image": image(70, 90), "vocabulary": Vocabulary.parse("road,water|lake,tree")},
        {"image": image(65, 81, 1), "vocabulary": Vocabulary.parse("building")},
        {"image": image(40, 30, 2), "vocabulary": Vocabulary.parse("grass,sand"), "height": 55, "width": 21},
    ]
    together = small_model.predict(samples, "probabilities")
    for sample, one in zip(samples, together):
        (alone,) = small_model.predict([sample], "probabilities")
        torch.testing.assert_close(one["sem_seg"], alone["sem_seg"], atol=1e-5, rtol=0)
        torch.testing.assert_close(one["presence"], alone["presence"], atol=1e-5, rtol=0)
    assert [tuple(p["sem_seg"].shape) for p in together] == [(3, 70, 90), (1, 65, 81), (2, 55, 21)]


def test_a_thousand_names(small_model):
    names = Vocabulary.of([f"thing {i}" for i in range(1000)])
    (out,) = small_model.predict([{"image": image(64, 64), "vocabulary": names}], "labels")
    assert out["labels"].max() < 1000
    assert out["presence"].shape == (1000,)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (33, 31)])
def test_odd_sizes(small_model, size):
    (out,) = small_model.predict([{"image": image(*size), "vocabulary": Vocabulary.parse("road")}], "labels")
    assert out["labels"].shape == size


def test_segment_anything_is_converted_to_our_names(call, tmp_path, root):
    from safetensors.torch import load_file

    torch.save(sam().state_dict(), tmp_path / "sam.pth")
    words = (
        tmp_path / "sam.pth",
        tmp_path / "decoder.safetensors",
        "--config-file",
        root / "configs/mini/prompts.yaml",
    )
    assert call("tools/convert_checkpoint.py", *words)[0] == 0
    assert load_file(tmp_path / "decoder.safetensors")["sem_seg_head.shared_tokens.weight"].shape == (5, 256)
