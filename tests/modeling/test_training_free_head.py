"""Tests of masks from an untrained head, comparing each step with a slow reference implementation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import tiny_siglip
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image

from skysense_o import Predictor
from skysense_o.checkpoint import build_with_weights
from skysense_o.config import default_config
from skysense_o.meta_arch import SkySenseO
from skysense_o.modeling import Features, Queries
from skysense_o.modeling.open_clip_readers import self_attention, timm_self_attention
from skysense_o.modeling.open_clip_tower import OpenCLIPTower
from skysense_o.modeling.training_free_head import Affinity, TrainingFreeHead, joint_bilateral
from skysense_o.vocabulary import Vocabulary

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "dubai"
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny-free.json").write_text(json.dumps(MODEL))
    tiny_siglip.register(folder)


def config(name="tiny-free", **keys):
    cfg = default_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TOWER.NAME, cfg.MODEL.TOWER.OPEN_CLIP.NAME = "OpenCLIPTower", name
    cfg.MODEL.TOWER.OPEN_CLIP.ATTENTION = ["qq", "kk", "vv"]
    cfg.MODEL.SEM_SEG_HEAD.NAME = "TrainingFreeHead"
    for key, value in keys.items():
        cfg.MODEL.SEM_SEG_HEAD.TRAINING_FREE[key] = value
    return cfg


@pytest.mark.parametrize("kinds", [["qq"], ["qq", "kk"], ["qq", "kk", "vv"]])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["tiny-free", "tiny-sigmoid"])
@torch.no_grad()
def test_self_attention_token_by_token(name, kinds, residual):
    """Attention among queries, keys or values alone (qq, kk, vv) equals a loop over tokens, in open_clip and timm."""
    torch.manual_seed(0)
    visual, x = OpenCLIPTower(config(name)).eval().clip.visual, torch.randn(1, 5, 64)
    if name == "tiny-free":
        block, found = visual.transformer.resblocks[-1], self_attention
        norm, norm_2, attn = block.ln_1, block.ln_2, block.attn
        qkv = norm(x)[0] @ attn.in_proj_weight.T + attn.in_proj_bias
        out = attn.out_proj
    else:
        block, found = visual.trunk.blocks[-1], timm_self_attention
        norm, norm_2, attn = block.norm1, block.norm2, block.attn
        qkv, out = attn.qkv(norm(x))[0], attn.proj
    parts = dict(zip("qkv", qkv.split(64, dim=1)))
    read = torch.zeros(5, 64)
    for head in range(4):
        part = {kind: value[:, 16 * head : 16 * head + 16] for kind, value in parts.items()}
        for i in range(5):
            for kind in kinds:
                a = part[kind[0]]
                scores = [math.exp(float(a[i] @ a[j]) / 4.0) for j in range(5)]
                for j in range(5):
                    read[i, 16 * head : 16 * head + 16] += scores[j] / sum(scores) * part["v"][j]
    want = read @ out.weight.T + out.bias
    if residual:
        want = x[0] + want
        want = want + block.mlp(norm_2(want))
    torch.testing.assert_close(found(block, x, kinds, residual)[0], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "dim"), [("tiny-free", 32), ("tiny-sigmoid", 64)])
@torch.no_grad()
def test_the_keys_change_the_dense_map_and_nothing_else(name, dim):
    torch.manual_seed(0)
    x, found = torch.randn(1, 3, 40, 48), {}
    for attention in ((), ("qq",), ("qq", "kk"), ("qq", "kk", "vv")):
        torch.manual_seed(1)
        cfg = config(name)
        cfg.MODEL.TOWER.OPEN_CLIP.ATTENTION = list(attention)
        found[attention] = OpenCLIPTower(cfg).eval().encode_image(x)
    first, *others = found.values()
    for i, other in enumerate(others):
        assert other.dense.shape == (1, dim, 5, 6)
        assert not torch.allclose(first.dense, other.dense, atol=1e-3), i
        torch.testing.assert_close(first.pooled, other.pooled)
    cfg = config()
    cfg.MODEL.TOWER.OPEN_CLIP.ATTENTION = ["qk"]
    with pytest.raises(ValueError, match=r"ATTENTION \['qk'\]: use qq, kk, vv, or \[\]"):
        OpenCLIPTower(cfg)


def features(generator, b=2, d=8, h=4, w=5, patch=8) -> Features:
    image = torch.randn(b, 3, h * patch, w * patch, generator=generator)
    dense = torch.randn(b, d, h, w, generator=generator)
    return Features(dense, (), torch.randn(b, d, generator=generator), image=image)


def test_probabilities_are_the_softmax_of_debiased_cosines():
    generator = torch.Generator().manual_seed(0)
    seen, text = features(generator), F.normalize(torch.randn(2, 3, 2, 8, generator=generator), dim=-1)
    valid = torch.tensor([[True, True, True], [True, True, False]])
    head = TrainingFreeHead(temperature=0.1, global_bias=0.3)
    logits, presence, iou = head(seen, Queries(text, valid), 1)
    assert (presence, iou) == (None, None)
    for b in range(2):
        shared = seen.pooled[b] / seen.pooled[b].norm()
        for y in range(4):
            for x in range(5):
                cell = seen.dense[b, :, y, x] / seen.dense[b, :, y, x].norm() - 0.3 * shared
                cell = cell / cell.norm()
                cosines = [float(cell @ F.normalize(text[b, t].mean(0), dim=0)) for t in range(3) if valid[b, t]]
                total = sum(math.exp(c / 0.1) for c in cosines)
                want = torch.tensor([math.exp(c / 0.1) / total for c in cosines])
                torch.testing.assert_close(logits[b, : len(cosines), y, x].sigmoid(), want, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="TrainingFreeHead compares words, and there is only one: add background"):
        head(seen, Queries(text[:, :1], valid[:, :1]))
    with pytest.raises(ValueError, match="unknown TRAINING_FREE.UPSAMPLING 'cubic': choose one of bilinear, bilateral"):
        TrainingFreeHead(upsampling="cubic")


def test_joint_bilateral_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    maps, image = torch.randn(1, 2, 3, 4, generator=generator), torch.randn(1, 3, 12, 16, generator=generator)
    found = joint_bilateral(maps, image, 2, 0.7, 0.8)
    fine, coarse = F.adaptive_avg_pool2d(image, (6, 8))[0], F.adaptive_avg_pool2d(image, (3, 4))[0]
    for i in range(6):
        for j in range(8):
            total, weights = torch.zeros(2), 0.0
            for y in range(i // 2 - 2, i // 2 + 3):
                for x in range(j // 2 - 2, j // 2 + 3):
                    if 0 <= y < 3 and 0 <= x < 4:
                        far = (y - ((i + 0.5) / 2 - 0.5)) ** 2 + (x - ((j + 0.5) / 2 - 0.5)) ** 2
                        colour = float(((fine[:, i, j] - coarse[:, y, x]) ** 2).sum())
                        weight = math.exp(-far / (2 * 0.49) - colour / (2 * 0.64))
                        total, weights = total + weight * maps[0, :, y, x], weights + weight
            if weights > 1e-9:
                torch.testing.assert_close(found[0, :, i, j], total / weights, atol=1e-4, rtol=1e-4)


def test_joint_bilateral_finds_an_edge_between_cells():
    """Joint bilateral upsampling finds an image edge inside a cell; bilinear upsampling would blur the edge."""
    image = torch.full((1, 3, 16, 64), -1.0)
    image[..., 36:] = 1.0
    maps = torch.zeros(1, 1, 2, 8)
    maps[..., 5:] = 1.0
    maps[..., 4] = 0.5
    found = joint_bilateral(maps, image, 8, 0.7, 0.3)[0, 0, 8]
    edge = (found > 0.5).nonzero()[0, 0]
    assert abs(int(edge) - 36) <= 1
    assert (found[:35] < 0.51).all()


def test_affinity_cell_by_cell():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, dynamic_img_size=True)
    look = (torch.full((3, 1, 1), 127.5),) * 2
    other = (torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 60.0))
    affinity = Affinity(vit, look, other, shift=1.0, scale=3.0)
    seen = features(torch.Generator().manual_seed(0), b=1)
    found = affinity(seen.image, seen.dense)
    shown = (seen.image * 127.5 + 127.5 - 120.0) / 60.0
    shown = F.interpolate(shown, size=(64, 80), mode="bilinear", align_corners=False, antialias=True)
    with torch.no_grad():
        tokens = F.normalize(vit.eval().forward_features(shown)[0, 1:], dim=-1)
    cells, mean = seen.dense[0].flatten(1).T, float((tokens @ tokens.T).mean())
    for i in range(20):
        total, weights = torch.zeros(8), 0.0
        for j in range(20):
            excess = 3.0 * (float(tokens[i] @ tokens[j]) - mean)
            if excess >= 0 or i == j:
                total, weights = total + math.exp(excess) * cells[j], weights + math.exp(excess)
        torch.testing.assert_close(found[0, :, i // 5, i % 5], total / weights, atol=1e-4, rtol=1e-4)
    head = TrainingFreeHead(affinity=affinity)
    assert not torch.allclose(head.refine(seen).dense, TrainingFreeHead().refine(seen).dense, atol=1e-3)


def test_an_affinity_that_is_not_there_says_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="AFFINITY 'vit_no_such' cannot be loaded .*leave it empty to do without"):
        SkySenseO(config(AFFINITY="vit_no_such"))


@torch.no_grad()
def test_siglips_checkpoint_is_enough(tmp_path):
    """A SigLIP checkpoint loads without other files.

    SigLIP's logit bias is equal for all words, so it cancels in the softmax over words. The key TEMPERATURE replaces
    SigLIP's logit scale.
    """
    torch.manual_seed(0)
    theirs = open_clip.create_model("tiny-sigmoid")
    assert float(theirs.logit_bias) == -10
    torch.save(theirs.state_dict(), tmp_path / "siglip.pt")
    cfg = config("tiny-sigmoid", TEMPERATURE=0.1, GLOBAL_BIAS=0.0, UPSAMPLING="bilinear")
    cfg.MODEL.TOWER.OPEN_CLIP.ATTENTION, cfg.MODEL.TEMPLATES = [], ["a photo of {}"]
    model, report = build_with_weights(cfg, tmp_path / "siglip.pt")
    assert not report.missing
    image = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    vocabulary = Vocabulary.parse("road,tree", "water")
    (found,) = model.predict([{"image": image, "vocabulary": vocabulary}], "probabilities")
    text = theirs.eval().encode_text(open_clip.tokenize([f"a photo of {w}" for w in vocabulary.classes], 16))
    x = (image[None] - model.tower.pixel_mean) / model.tower.pixel_std
    cells = F.normalize(model.tower.encode_image(x).dense[0].flatten(1).T, dim=1)
    cosines = cells @ F.normalize(text, dim=1).T
    for bias in (0.0, float(theirs.logit_bias)):
        want = (cosines / 0.1 + bias).softmax(1).T.unflatten(1, (5, 7))
        want = F.interpolate(want[None], size=(40, 56), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(found["sem_seg"], want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("upsampling", ["bilinear", "bilateral"])
def test_a_checkpoint_of_open_clip_is_enough(tmp_path, upsampling):
    """A plain open_clip state dict, as published for RemoteCLIP and GeoRSCLIP, works on whole images and in windows."""
    torch.manual_seed(0)
    theirs = open_clip.create_model("tiny-free")
    torch.save(theirs.state_dict(), tmp_path / "RemoteCLIP-tiny.pt")
    model, report = build_with_weights(config(UPSAMPLING=upsampling), tmp_path / "RemoteCLIP-tiny.pt")
    assert not report.missing
    assert torch.equal(model.tower.clip.visual.proj, theirs.visual.proj)
    predictor = Predictor(model)
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    found = predictor(image, "road,tree", background="water", probabilities=True)
    assert found.labels.shape == (70, 90)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-4)  # probabilities of all words add up to 1
    windows = predictor(image, "road,tree", background="water", window=64)
    assert windows.labels.shape == (70, 90)


def test_run_eval_on_a_checkpoint(call, dubai, tmp_path):
    """The command of run_eval.sh evaluates a user's checkpoint with the shipped config."""
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-free").state_dict(), tmp_path / "RemoteCLIP-tiny.pt")
    code, _, err = call(
        "tools/train_net.py", "--config-file", ROOT / "configs/training_free/openclip.yaml", "--eval-only",
        "OUTPUT_DIR", tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "RemoteCLIP-tiny.pt", "MODEL.DEVICE", "cpu",
        "MODEL.TOWER.OPEN_CLIP.NAME", "tiny-free", "TEST.IMAGES", 0,
    )  # fmt: skip
    assert code == 0, err
    body = json.loads((tmp_path / "out" / "inference" / "dubai_val.json").read_text())
    assert 0 <= body["numbers"]["mIoU"] <= 1


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_masks_of_minis_features_beat_chance_on_dubai(mini):
    """Cosines of the shipped tower's features with class names segment Dubai's validation scenes better than chance."""
    cfg = default_config()
    cfg.MODEL.DEVICE, cfg.MODEL.TOWER.PRETRAINED, cfg.MODEL.SEM_SEG_HEAD.NAME = "cpu", False, "TrainingFreeHead"
    model = SkySenseO(cfg)
    model.tower = mini.model.tower
    predictor, classes = Predictor(model), ("water", "land", "road", "building", "vegetation")
    confusion = np.zeros((5, 5), np.int64)
    for stem in ("tile5_001", "tile5_004", "tile6_002", "tile6_006"):
        (path,) = DATA.glob(f"**/{stem}.jpg")
        labels = np.array(Image.open(DATA / "labels" / f"{stem}.png"))
        found = predictor(path, list(classes)).labels
        known = labels != 255
        confusion += np.bincount(5 * labels[known] + found[known], minlength=25).reshape(5, 5)
    both = confusion.diagonal()
    iou = both / np.maximum(confusion.sum(0) + confusion.sum(1) - both, 1)
    print("mIoU", iou.mean(), "accuracy", both.sum() / confusion.sum(), dict(zip(classes, iou.round(3).tolist())))
    share = confusion.sum(1) / confusion.sum()
    chance = share / (5 * share + 1 - share)  # expected IoU of uniformly random labels
    assert iou.mean() > 1.5 * chance.mean()
    assert both.sum() / confusion.sum() > 0.3
