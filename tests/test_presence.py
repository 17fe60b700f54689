"""Tests that the presence of a class is made from the decoder's own score or from the mask, as the weights say."""

from __future__ import annotations

import pytest
import torch
from conftest import small_config

from skysense_o.checkpoint import save_weights
from skysense_o.config import default_config, model_config
from skysense_o.geometry import ImageTransform
from skysense_o.meta_arch import SkySenseO
from skysense_o.presence import Presence, mask_scores
from skysense_o.training.known import fill_known
from skysense_o.vocabulary import Vocabulary


def test_the_score_of_a_mask_asks_for_half_a_percent_of_the_image_and_no_padding():
    """20 x 20 cells lie over 80 x 80 pixels, of which 40 x 80 are image: of these 200 cells, one is 0.5 %."""
    transform = ImageTransform(size=(40, 80), padded=(80, 80), prepared=(80, 80))
    logits = torch.full((3, 20, 20), -5.0)
    logits[1, 3, 4] = 2.0  # one cell of the image
    logits[2, 15, 4] = 9.0  # one cell of the padding
    assert mask_scores(logits, transform).tolist() == [-5.0, 2.0, -5.0]


def test_one_bright_cell_of_a_large_image_is_not_enough():
    logits = torch.full((1, 40, 40), -5.0)  # 1600 cells, of which 8 are 0.5 %
    logits[0, 0, :7] = 3.0
    whole = ImageTransform(size=(160, 160), padded=(160, 160), prepared=(160, 160))
    assert mask_scores(logits, whole)[0] == -5
    logits[0, 0, 7] = 1.0
    assert mask_scores(logits, whole)[0] == 1


def test_weights_without_calibration_give_the_score_of_the_decoder():
    transform = ImageTransform(size=(40, 40), padded=(40, 40), prepared=(40, 40))
    head, logits = torch.tensor([-1.0, 2.0]), torch.full((2, 10, 10), 3.0)
    torch.testing.assert_close(Presence()(head, logits, transform), head.sigmoid())
    torch.testing.assert_close(Presence([2.0, -1.0])(head, logits, transform), torch.tensor([5.0, 5.0]).sigmoid())


def test_a_wrong_number_of_factors_is_an_error():
    with pytest.raises(ValueError, match=r"MODEL.KNOWN.PRESENCE \[1.0\] has 1 numbers: give two, a slope and"):
        Presence([1.0])


def test_the_model_gives_the_calibrated_presence_and_its_masks_stay():
    cfg = small_config()
    torch.manual_seed(0)
    model = SkySenseO(cfg).eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    sample = {"image": image, "vocabulary": Vocabulary.parse("vegetation|green,tree")}
    raw = model.predict([sample], "probabilities")[0]
    model.presence = Presence([1.0, 0.0])
    mine = model.predict([sample], "probabilities")[0]
    torch.testing.assert_close(mine["sem_seg"], raw["sem_seg"], rtol=0, atol=0)
    grid = model.predict_windows(image[None], sample["vocabulary"])[0]  # 16 x 24 cells, of which 2 are 0.5 %
    torch.testing.assert_close(mine["presence"][1], grid[1].flatten().topk(2).values[-1])
    assert (mine["presence"] - raw["presence"]).abs().min() > 1e-4


def test_a_narrower_word_takes_no_presence_from_the_wider_word():
    """Where "forest" wins the pixels there are still trees."""
    cfg = small_config()
    cfg.MODEL.KNOWN.KINDS, cfg.MODEL.KNOWN.PRESENCE = ["tree", "forest < tree"], [1.0, 0.0]
    torch.manual_seed(0)
    model = SkySenseO(cfg).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    alone, both = (
        model.predict([{"image": image, "vocabulary": Vocabulary.parse(words)}], "labels")[0]["presence"]
        for words in ("tree", "tree,forest")
    )
    torch.testing.assert_close(both[0], alone[0])


def test_a_training_does_not_keep_the_calibration_of_its_starting_weights(tmp_path):
    cfg = small_config()
    cfg.MODEL.KNOWN.PRESENCE = [0.5, -2.0]
    save_weights(SkySenseO(cfg), tmp_path / "start.safetensors", model_config(cfg).dump())
    training = default_config()
    training.DATASETS.TRAIN, training.MODEL.WEIGHTS = ("dubai_train",), str(tmp_path / "start.safetensors")
    training.MODEL.KNOWN.PRESENCE = [0.5, -2.0]
    fill_known(training)
    assert training.MODEL.KNOWN.PRESENCE == []
