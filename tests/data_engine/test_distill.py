"""Tests of distillation: the teacher's soft masks, a student trained on them, and resuming after a kill."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import draw_scene, small_config
from PIL import Image

from skysense_o import Predictor
from skysense_o.data_engine.collect import collect
from skysense_o.data_engine.distill import SoftMasks, label_softly, teach
from skysense_o.data_engine.work_folder import WorkFolder, read_map
from skysense_o.losses import soft_mask_divergence
from skysense_o.meta_arch import SkySenseO
from skysense_o.vocabulary import Vocabulary

WORDS = Vocabulary.parse("water|sea,land,building")


@pytest.fixture
def tiles(tmp_path):
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for i in range(3):
        Image.fromarray(draw_scene(rng, 70, 101)[0]).save(folder / f"{i}.png")
    work = WorkFolder(tmp_path / "work")
    collect(work, sorted(folder.iterdir()), side=128)
    return work


class Blue(torch.nn.Module):
    """A teacher whose probability of water is high where the image is blue."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.seen = torch.device("cpu"), 0
        self.tower = torch.nn.Module()
        self.tower.register_buffer("pixel_mean", torch.full((3, 1, 1), 127.5))

    def embed_images(self, images):
        from skysense_o.geometry import ImageTransform

        self.seen += len(images)
        return (
            images,
            torch.zeros(1),
            [ImageTransform(*[tuple(i.shape[1:])] * 3) for i in images],
        )

    def predict_text(self, images, transforms, vocabularies, sizes, reduce):
        blue = images[0][2].float() / 255
        return [{"sem_seg": torch.stack([blue, 1 - blue, torch.zeros_like(blue)])}]


def test_the_divergence_by_hand():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5) * 0.98 + 0.01
    which, each = 0.0, 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                t, s = target[b, :, y, x], logits[b, :, y, x]
                total, share = sum(math.exp(v) for v in s), t / t.sum()
                which += sum(float(share[c]) * math.log(float(share[c]) / (math.exp(s[c]) / total)) for c in range(3))
                for c in range(3):
                    p, q = float(t[c]), 1 / (1 + math.exp(-s[c]))
                    each += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    want = which / 40 + each / 120
    assert float(soft_mask_divergence(logits, target)) == pytest.approx(want, abs=1e-5)
    one = torch.rand(1, 1, 4, 4) * 0.9 + 0.05
    assert float(soft_mask_divergence(one.logit(), one)) == pytest.approx(0.0, abs=1e-5)
    assert torch.isfinite(soft_mask_divergence(logits, (target > 0.5).float()))


def test_soft_masks_are_the_teachers_and_made_once(tiles):
    teacher = Predictor(Blue())
    assert label_softly(tiles, teacher, WORDS) == []
    assert teacher.model.seen == 3
    row = tiles.kept()[0]
    soft = read_map(tiles / f"soft/{row['tile']}.png").reshape(3, 18, 26)
    blue = tiles.image(row)[:, :, 2].astype(float)
    assert soft[0, 0, 0] == pytest.approx(blue[:4, :4].mean(), abs=2)
    assert (soft[2] == 0).all()
    (tiles / f"soft/{row['tile']}.png").unlink()
    label_softly(tiles, teacher, WORDS)
    assert teacher.model.seen == 4
    with pytest.raises(ValueError, match="holds soft masks of another background and words: give the same"):
        label_softly(tiles, teacher, Vocabulary.parse("water,land"))


def test_a_crop_and_its_masks_are_turned_together(tiles):
    label_softly(tiles, Predictor(Blue()), WORDS)
    masks = SoftMasks(tiles, 64, 32)
    assert masks.vocabulary.phrases == WORDS.phrases
    close = []
    for number in range(12):
        image, soft = masks.sample(0, number)
        again, _ = masks.sample(0, number)
        assert torch.equal(image, again)
        assert image.shape == (3, 64, 64)
        assert soft.shape == (3, 16, 16)
        blue = torch.nn.functional.avg_pool2d(image[2:].float() / 255, 4)[0]
        close.append(float(torch.corrcoef(torch.stack([blue.flatten(), soft[0].flatten()]))[0, 1]))
    assert np.median(close) > 0.9  # augmentation changes colours, but must not change positions


def test_small_tiles_small_crops_and_missing_masks(tiles):
    with pytest.raises(FileNotFoundError, match="no soft masks in .*: call `label_softly` first"):
        SoftMasks(tiles, 64, 32)
    label_softly(tiles, Predictor(Blue()), WORDS)
    with pytest.raises(ValueError, match="INPUT.CROP_SIZE 16 is too small for the student: give 32 or more"):
        SoftMasks(tiles, 16, 32)
    image, soft = SoftMasks(tiles, 128, 32).sample(0, 0)  # tiles of 70 x 101 pixels are padded by reflection
    assert (image.shape, soft.shape) == ((3, 128, 128), (3, 32, 32))


def student() -> tuple:
    torch.manual_seed(0)
    cfg = small_config()
    cfg.MODEL.TEXT_NOISE = 0.5
    model = SkySenseO(cfg)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))


def test_a_student_learns_and_a_kill_changes_nothing(tiles, tmp_path):
    label_softly(tiles, Predictor(Blue()), WORDS)
    masks = SoftMasks(tiles, 64, 32)
    options = {"steps": 12, "batch": 2, "every": 4}
    (tmp_path / "whole").mkdir()
    model, optimizer, scheduler = student()
    losses = teach(model, optimizer, scheduler, masks, tmp_path / "whole", **options)
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])

    class Killed(Exception):
        pass

    (tmp_path / "killed").mkdir()
    other, optimizer, scheduler = student()
    calls, step = [0], optimizer.step

    def stops(*args, **kwargs):
        calls[0] += 1
        if calls[0] > 6:
            raise Killed
        return step(*args, **kwargs)

    optimizer.step = stops
    with pytest.raises(Killed):
        teach(other, optimizer, scheduler, masks, tmp_path / "killed", **options)
    again, optimizer, scheduler = student()
    # The run was resumed at step 4.
    assert len(teach(again, optimizer, scheduler, masks, tmp_path / "killed", **options)) == 8
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)
