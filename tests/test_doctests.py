"""Tests that the examples in docstrings run and print the output shown."""

from __future__ import annotations

import doctest
import importlib

import pytest
from conftest import ROOT

MODULES = [
    "errors", "byte_cache", "kinds", "losses", "data.captions", "data.classes", "data.concepts", "data.encode",
    "data.prepare", "data.skysa",
    "data.question_mapper", "data.relation_graph", "data.catalog", "data.augment", "data.labels", "device", "parallel",
    "clicks", "geometry", "vocabulary", "text_bank", "published", "weight_paths",
    "shipped_files", "pretraining", "modeling.adapters", "modeling.decoder", "modeling.tower", "modeling.weight_cache",
    "modeling.window_attention", "vqa.vqa_model", "vqa.counter", "evaluation.metrics", "evaluation.predictions",
    "evaluation.questions", "evaluation.table", "evaluation.zero_shot", "training.optimizer",
    "training.record", "training.ema", "image_io.reading", "image_io.files", "image_io.orientation", "image_io.stretch",
    "inference.colors",
    "inference.drawing", "inference.export", "inference.predictor", "inference.prompted_image",
    "inference.segmentation", "inference.automatic_masks", "inference.sliding", "inference.windows", "scenes.options",
]  # fmt: skip

NEED_GEO = ["scenes.api", "scenes.georeference", "scenes.pixel_area", "scenes.raster", "scenes.regions", "scenes.run"]


@pytest.mark.parametrize("name", [*MODULES, *NEED_GEO])
def test_examples_run(name, monkeypatch):
    if name in NEED_GEO:
        pytest.importorskip("rasterio", reason='pip install -e ".[geo]"')
    monkeypatch.chdir(ROOT)  # the examples use images in demo/
    result = doctest.testmod(importlib.import_module(f"skysense_o.{name}"), optionflags=doctest.ELLIPSIS)
    assert result.attempted, f"{name} has no example"
    assert not result.failed
