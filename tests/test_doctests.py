"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "errors", "byte_cache", "device", "parallel", "clicks", "geometry", "vocabulary", "published", "weight_files",
    "pretraining", "modeling.adapters", "modeling.decoder", "modeling.tower", "modeling.weight_cache",
    "modeling.window_attention",
    "losses", "data.captions", "data.classes", "data.encode", "data.prepare", "data.question_mapper",
    "data.relation_graph", "data.skysa", "data.catalog", "data.augment", "data.labels",
    "vqa.vqa_model", "vqa.counter", "evaluation.metrics", "evaluation.predictions", "evaluation.questions",
    "evaluation.table", "evaluation.zero_shot", "training.optimizer", "training.record", "training.ema",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"skysense_o.{name}"), optionflags=doctest.ELLIPSIS)
    assert result.attempted, f"{name} has no example"
    assert not result.failed
