"""Tests of open_clip towers: dense features lie in the text embedding space, for images of any size."""

from __future__ import annotations

import json
import logging

import open_clip
import pytest
import tiny_siglip
import torch
import torch.nn.functional as F

from skysense_o.config import default_config
from skysense_o.meta_arch import SkySenseO
from skysense_o.modeling.clip_text import encode_tokens, is_plain
from skysense_o.modeling.open_clip_tower import OpenCLIPTower, preprocessing
from skysense_o.vocabulary import Vocabulary

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8}
TIMM = {"timm_pool": "", "timm_proj": "linear"}
MODELS = {
    "tiny-vit": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-vit-mean": {
        "embed_dim": 32,
        "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT,
    },
    "tiny-convnext": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "timm_model_name": "convnext_atto", **TIMM},
        "text_cfg": TEXT,
    },
    "tiny-map": {"embed_dim": 32, "vision_cfg": {**VIT, "attentional_pool": True}, "text_cfg": TEXT},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    tiny_siglip.register(folder)


def config(name: str, head: str = "SAMMaskHead"):
    cfg = default_config()
    cfg.MODEL.TOWER.NAME, cfg.MODEL.TOWER.OPEN_CLIP.NAME, cfg.MODEL.SEM_SEG_HEAD.NAME = "OpenCLIPTower", name, head
    cfg.MODEL.SEM_SEG_HEAD.WIDTH, cfg.MODEL.SEM_SEG_HEAD.HEADS, cfg.MODEL.SEM_SEG_HEAD.MLP = 32, 4, 64
    cfg.MODEL.LOSS.PRESENCE = 0.0
    return cfg


COLORS = {"red": (1.0, -1, -1), "green": (-1, 1.0, -1), "blue": (-1, -1, 1.0), "white": (1.0, 1.0, 1.0)}


def colored(count: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy images of one colour each, and the index of each colour."""
    kinds = torch.randint(0, len(COLORS), (count,), generator=generator)
    flat = torch.tensor(list(COLORS.values()))[kinds][:, :, None, None]
    return flat + torch.randn(count, 3, size, size, generator=generator) * 0.7, kinds


@pytest.mark.parametrize(
    ("name", "size"), [("tiny-vit", 32), ("tiny-vit-mean", 32), ("tiny-sigmoid", 32), ("tiny-convnext", 64)]
)
def test_the_mean_of_the_dense_map_ranks_names_like_the_pooled_vector(name, size):
    """In a tower trained to classify colours, the mean of the dense map ranks colour names like the pooled vector."""
    torch.manual_seed(0)
    tower, generator = OpenCLIPTower(config(name)), torch.Generator().manual_seed(1)
    # ConvNeXt is not trained: its random features suffice, and its convolutions are slow to train.
    if name == "tiny-convnext":
        tower.clip.visual.trunk.eval().requires_grad_(False)
    for parameter in tower.parameters():
        # The text tower's token embeddings stay frozen.
        parameter.requires_grad_(parameter.requires_grad and parameter.numel() < 10**6)
    optimizer = torch.optim.AdamW([p for p in tower.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(30):
        x, kinds = colored(8, size, generator)
        pooled, text = F.normalize(tower.encode_image(x).pooled, dim=-1), tower.encode_text(list(COLORS))
        F.cross_entropy(10 * pooled @ text.T, kinds).backward()
        optimizer.step()
        optimizer.zero_grad()
    tower.eval()
    with torch.no_grad():
        text = tower.encode_text(list(COLORS))
        for height, width in ((size, size), (2 * size, 3 * size)):
            x, kinds = colored(12, height, generator)
            features = tower.encode_image(x[..., :1].expand(-1, -1, -1, width) if width != height else x)
            by_pool = (F.normalize(features.pooled, dim=-1) @ text.T).argmax(1)
            by_map = (F.normalize(features.dense.mean((2, 3)), dim=-1) @ text.T).argmax(1)
            assert (by_pool == kinds).float().mean() > 0.9
            assert (by_pool == by_map).float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "size"), [("tiny-vit", 32), ("tiny-vit-mean", 32), ("tiny-sigmoid", 32), ("tiny-convnext", 64)]
)
@torch.no_grad()
def test_pooled_features_and_text_equal_open_clips(name, size):
    tower = OpenCLIPTower(config(name)).eval()
    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(tower.encode_image(x).pooled, tower.clip.encode_image(x), atol=1e-5, rtol=1e-4)
    strings = ["a photo of a road", "a photo of a very long dry river bed", "a photo of trees", ""]
    want = tower.clip.encode_text(tower.tokenizer(strings), normalize=True)
    torch.testing.assert_close(tower.encode_text(strings), want, atol=1e-5, rtol=0)


@torch.no_grad()
def test_shared_tokens_run_once():
    """Encoding the leading tokens that phrases share only once gives open_clip's embeddings with half of the FLOPs."""
    from torch.utils.flop_counter import FlopCounterMode

    text = open_clip.create_model("tiny-vit").eval()
    assert is_plain(text)
    strings = [f"A remote sensing image of a {word}." for word in ("road", "storage tank", "tree", "ship", "harbor")]
    for some in (strings, strings[:1], ["road", "tree"], ["road", "road"]):
        tokens = open_clip.tokenizer.tokenize(some, context_length=16)
        torch.testing.assert_close(encode_tokens(text, tokens), text.encode_text(tokens), atol=1e-5, rtol=0)
    flops = []
    for encode in (lambda t: encode_tokens(text, t), text.encode_text):
        with FlopCounterMode(display=False) as counter:
            encode(open_clip.tokenizer.tokenize(strings, context_length=16))
        flops.append(counter.get_total_flops())
    assert flops[0] < 0.5 * flops[1]


def test_attention_pooling_is_an_error():
    """A tower with attention pooling, as in CoCa, is refused: its projection was trained for the pooled vector only."""
    with pytest.raises(
        ValueError, match="'tiny-map' .* pools so that its map is not in the text space; choose another"
    ):
        OpenCLIPTower(config("tiny-map"))


def test_siglips_cells_are_pooled_alone():
    """Each dense cell of SigLIP is pooled alone.

    The cell passes the pooling layer's value projection, output projection and feed-forward layer, without attention.
    """
    torch.manual_seed(0)
    tower = OpenCLIPTower(config("tiny-sigmoid")).eval()
    trunk, x = tower.clip.visual.trunk, torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for parameter in trunk.attn_pool.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # make the biases differ from 0
        dense, tokens = tower.encode_image(x).dense, trunk.forward_features(x)[0]
        pool, width = trunk.attn_pool, tiny_siglip.WIDTH
        for i, token in enumerate(tokens):
            value = pool.kv.weight[width:] @ token + pool.kv.bias[width:]
            out = pool.proj.weight @ value + pool.proj.bias
            out = out + pool.mlp(pool.norm(out))
            torch.testing.assert_close(dense[0, :, i // 4, i % 4], out, atol=1e-5, rtol=1e-4)
        assert tower.encode_image(torch.randn(2, 3, 40, 56)).dense.shape == (2, width, 5, 7)


def test_mean_and_std_are_those_that_open_clip_lists():
    """Without a pretrained tag, open_clip gives SigLIP the mean and std of CLIP; `preprocessing` returns SigLIP's."""
    clips = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "interpolation": "bicubic"}
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    for weights in ("", "open_clip_model.safetensors"):
        assert preprocessing("ViT-B-16-SigLIP", weights, clips) == half
        assert preprocessing("ViT-B-32", weights, clips)["mean"] == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    assert preprocessing("ViT-B-16-SigLIP", "webli", clips) == clips
    assert preprocessing("tiny-vit", "", clips) == clips


def test_a_tokenizer_that_is_not_here_says_so(monkeypatch, tmp_path):
    """SigLIP's T5 tokenizer comes from the hub; if it is not available, the error says so."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    body = {**MODELS["tiny-vit"], "text_cfg": {**TEXT, "hf_tokenizer_name": "nobody/no-tokenizer"}}
    (tmp_path / "tiny-t5.json").write_text(json.dumps(body))
    open_clip.add_model_config(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer of 'tiny-t5' is not in the local cache and could not be down"):
        OpenCLIPTower(config("tiny-t5"))


def test_unknown_names_and_weights_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="'ViT-Z' is not a model of open_clip: .*ViT-B-32"):
        OpenCLIPTower(config("ViT-Z"))
    cfg = config("tiny-vit")
    torch.save({"visual.proj": torch.zeros(3)}, tmp_path / "other.pt")
    cfg.MODEL.TOWER.OPEN_CLIP.WEIGHTS = str(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"'tiny-vit' cannot be built with the weights '.*other.pt'.*give a file"):
        OpenCLIPTower(cfg)


def test_a_local_checkpoint(tmp_path):
    """The tower loads a local open_clip state dict, the form in which RemoteCLIP and GeoRSCLIP are published."""
    theirs = open_clip.create_model("tiny-vit")
    torch.save(theirs.state_dict(), tmp_path / "RemoteCLIP-tiny.pt")
    cfg = config("tiny-vit")
    cfg.MODEL.TOWER.OPEN_CLIP.WEIGHTS = str(tmp_path / "RemoteCLIP-tiny.pt")
    ours = OpenCLIPTower(cfg).clip.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("head", ["SAMMaskHead", "CostAggregationHead"])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-sigmoid", "tiny-convnext"])
def test_each_decoder_trains_a_step_and_predicts(name, head):
    model = SkySenseO(config(name, head)).train()
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    sample = {"image": image, "vocabulary": Vocabulary.parse("road,tree"), "sem_seg": torch.randint(0, 2, (70, 90))}
    loss = sum(model([sample, sample]).values())
    loss.backward()
    assert torch.isfinite(loss)
    assert model.tower.clip.visual.state_dict()
    (out,) = model.eval()([sample])
    assert out["labels"].shape == (70, 90)


def test_warnings_are_hidden_of_one_package_only(caplog):
    """Regression: `logging.disable` used to hide the warnings of all packages instead of one package."""
    from skysense_o.modeling.open_clip_tower import without_warnings_of

    root, other = logging.getLogger(), logging.getLogger("somebody")
    of_package = root.makeRecord("root", logging.WARNING, "/site-packages/open_clip/factory.py", 1, "random", (), None)
    with without_warnings_of("open_clip"):
        root.handle(of_package)
        other.warning("heard")
        root.warning("heard as well")
    root.handle(of_package)
    assert caplog.messages == ["heard", "heard as well", "random"]
