"""Tests that importing and using the package changes no process-wide setting."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import ROOT

CODE = """
import logging, warnings
from PIL import Image
limit, level = Image.MAX_IMAGE_PIXELS, logging.root.level
import detectron2.data, torch, rasterio, pycocotools  # whose imports may have effects of their own
import skysense_o.training.run, skysense_o.inference.export, skysense_o.scenes.run, skysense_o.data_engine.collect
from skysense_o import Predictor
from skysense_o.image_io import read_image
filters = list(warnings.filters)
read_image("demo/yellowstone_0.4m.jpg"), read_image("demo/foz_30m.tif")
assert warnings.filters == filters, set(warnings.filters) - set(filters)
for action, message, category, module, _ in filters:
    assert action != "ignore" or message or module or category not in (Warning, UserWarning), "all are hidden"
assert Image.MAX_IMAGE_PIXELS == limit
assert (logging.root.level, logging.root.manager.disable) == (level, 0)
"""


def test_no_setting_of_the_process_is_changed():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
