"""Test that the printed table shows the presence of a class only if it is calibrated."""

from __future__ import annotations

import numpy as np
import torch
from conftest import small_config
from PIL import Image

from skysense_o.checkpoint import save_weights
from skysense_o.config import model_config
from skysense_o.meta_arch import SkySenseO


def test_the_table_shows_presence_if_it_is_calibrated(call, tmp_path):
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "a.png")
    torch.manual_seed(0)
    for factors, columns in (([], ["class", "pixels", "share"]), ([0.0, 3.0], ["class", "pixels", "share", "present"])):
        cfg, path = small_config(), tmp_path / "small.safetensors"
        cfg.MODEL.KNOWN.PRESENCE = factors
        save_weights(SkySenseO(cfg), path, model_config(cfg).dump())
        words = ("--input", tmp_path / "a.png", "--classes", "road,tree", "--background", "sky", "--output", tmp_path)
        code, said, err = call("demo/demo.py", *words, "--weights", path, "--device", "cpu")
        assert code == 0, err
        table = said[said.index("class") :].splitlines()
        assert table[0].split() == columns
        if factors:  # with a slope of 0 each class has the sigmoid of 3; "none" is no class, and has none
            assert [line.split()[-1] for line in table[3:5]] == ["0.95", "0.95"]
            assert table[2].split()[-1] == "%"
