"""Tests of optimiser groups, the moving average, and a short real training run."""

from __future__ import annotations

import pytest
import torch
from conftest import drawn_samples
from detectron2.utils.analysis import find_unused_parameters

from skysense_o.config import default_config
from skysense_o.data.prompt_sampler import PromptSampler
from skysense_o.evaluation.metrics import confusion, segmentation_metrics
from skysense_o.meta_arch import SkySenseO
from skysense_o.training.ema import MovingAverage
from skysense_o.training.optimizer import build_optimizer
from skysense_o.training.run import micro_batch


def layers() -> torch.nn.Module:
    return torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})


def test_the_first_pattern_wins_and_factor_0_freezes():
    model = layers()
    optimizer = build_optimizer(model, [["^a.bias", 0, 0.0], ["^a", 0.1, 0.5], [".", 1.0, 0.2]], 1e-2)
    assert not model["a"].bias.requires_grad
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        (pytest.approx(1e-3), 0.5, 1),
        (1e-2, 0.2, 2),
    ]


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'\^c' of SOLVER.GROUPS matches no parameter"):
        build_optimizer(layers(), [["^c", 1.0, 0.0], [".", 1.0, 0.0]], 1e-2)


def test_a_parameter_without_a_pattern_is_an_error():
    with pytest.raises(ValueError, match="no pattern of SOLVER.GROUPS matches 'b.weight'"):
        build_optimizer(layers(), [["^a", 1.0, 0.0]], 1e-2)


def test_the_total_batch_must_divide(cfg):
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION = 8, 3
    with pytest.raises(ValueError, match="IMS_PER_BATCH 8 does not divide by 1 processes x SOLVER.ACCUMULATION 3"):
        micro_batch(cfg)


def test_the_moving_average_and_restoring_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = MovingAverage(model, 0.5)
    want = 0.0
    for step in range(5):
        model.weight.data.fill_(float(step + 1))
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * (step + 1)
    with ema.applied():
        assert model.weight.item() == pytest.approx(want)
        saved = {"model": {k: v.clone() for k, v in model.state_dict().items()}, "ema": ema.state_dict()}
        saved["ema"] = {"updates": 5, "trained": {k: v.clone() for k, v in saved["ema"]["trained"].items()}}
    assert model.weight.item() == 5.0

    fresh = torch.nn.Linear(1, 1, bias=False)
    other = MovingAverage(fresh, 0.5)
    fresh.load_state_dict(saved["model"])
    other.load_state_dict(saved["ema"])
    assert fresh.weight.item() == 5.0
    assert other.other["weight"].item() == pytest.approx(want)


def test_it_memorises_four_images():
    torch.manual_seed(0)
    cfg = default_config()
    cfg.MODEL.TOWER.WIDTH = 32
    head = cfg.MODEL.SEM_SEG_HEAD
    head.WIDTH, head.HEADS, head.MLP = 64, 4, 128
    cfg.MODEL.LOSS.CROSS_ENTROPY = 1.0
    model, samples = SkySenseO(cfg).train(), drawn_samples(4)
    optimizer = build_optimizer(model, [["^tower.image", 0.3, 0.0], [".", 1.0, 0.0]], 3e-3)
    for _ in range(60):
        loss = sum(model(samples).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    matrix = 0
    for sample, prediction in zip(samples, model.eval()(samples)):
        matrix = matrix + confusion(sample["sem_seg"].numpy(), prediction["labels"].numpy(), 5, 255)
    assert segmentation_metrics(matrix)["mIoU"] > 0.9


def test_each_training_config_uses_all_its_parameters(root):
    configs = sorted((root / "configs/mini").glob("*.yaml"))
    assert configs
    for path in configs:
        cfg = default_config()
        cfg.merge_from_file(str(path))
        if cfg.MODEL.META_ARCHITECTURE != "SkySenseO":  # VQA models have their own tests
            continue
        cfg.MODEL.TOWER.PRETRAINED = False
        model = SkySenseO(cfg).train()
        build_optimizer(model, cfg.SOLVER.GROUPS, cfg.SOLVER.BASE_LR)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        samples = drawn_samples(2)
        if cfg.INPUT.PROMPTS:
            asked = PromptSampler(cfg.INPUT.PROMPTS)
            samples = [{**sample, "prompts": asked(sample["sem_seg"].numpy())} for sample in samples]
        assert set(find_unused_parameters(model, samples)) - frozen == set(), path


@pytest.mark.parametrize("tower", ["MiniTower", "SkySenseCLIP"])
@pytest.mark.parametrize("head", ["SAMMaskHead", "CostAggregationHead"])
def test_each_head_works_with_each_tower(cfg, tower, head):
    """Each head works with each tower: one training step changes the tower, and an image of odd size gets its masks."""
    cfg.MODEL.TOWER.NAME, cfg.MODEL.SEM_SEG_HEAD.NAME = tower, head
    swin, text = cfg.MODEL.TOWER.SWIN, cfg.MODEL.TOWER.CLIP_TEXT
    swin.DIM, swin.DEPTHS, swin.HEADS, swin.WINDOWS = 16, [2, 2, 2, 2], [2, 2, 4, 4], [4, 4, 4, 4]
    swin.PRETRAINED_WINDOWS = [0, 0, 0, 0]
    text.WIDTH, text.HEADS, text.LAYERS, text.OUTPUT_DIM, cfg.MODEL.TOWER.INPUT_SIZE = 32, 2, 1, 24, 64
    cfg.MODEL.SEM_SEG_HEAD.HIDDEN, cfg.MODEL.SEM_SEG_HEAD.WINDOW = 64, 4
    cfg.MODEL.LOSS.PRESENCE = 0.1 if head == "SAMMaskHead" else 0.0
    model, samples = SkySenseO(cfg).train(), drawn_samples(2)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(model, [[".", 1.0, 0.0]], 1e-3)
    sum(model(samples).values()).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert any(name.startswith("tower.") for name in moved)
    assert any(name.startswith("sem_seg_head.") for name in moved)
    model.text_bank.weights_changed()
    (out,) = model.eval().predict([{**samples[0], "image": samples[0]["image"][:, :37, :53]}], "labels")
    assert out["labels"].shape == (37, 53)


def test_a_head_without_presence_says_so(cfg):
    cfg.MODEL.SEM_SEG_HEAD.NAME = "CostAggregationHead"
    cfg.MODEL.SEM_SEG_HEAD.HIDDEN = 64
    model = SkySenseO(cfg).train()
    with pytest.raises(ValueError, match="this decoder gives no presence scores: set MODEL.LOSS.PRESENCE 0.0"):
        model(drawn_samples(4)[:1])


def test_batch_norm_is_frozen_in_training(small_model, cfg):
    model = SkySenseO(cfg)
    model.train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
