"""Tests of the ONNX export: any number of phrases and any image size give the same values as in torch."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from conftest import small_config
from timm.layers import Conv2dSame

from skysense_o import Predictor
from skysense_o.inference.onnx import ImageHalf, difference, embed_words, export_onnx
from skysense_o.meta_arch import SkySenseO
from skysense_o.vocabulary import Vocabulary


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return Predictor(SkySenseO(small_config()).eval())


def test_a_tower_prepared_for_inference_gives_the_same(predictor):
    """Folding batch norms and fixing paddings does not change the features, even if this is done twice."""
    tower = predictor.model.tower.double()
    for norm in (m for m in tower.image.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.normal_(norm.bias, 0, 0.1)
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
    with torch.inference_mode():
        for size in ((64, 96), (32, 32)):
            x = torch.randn(1, 3, *size, dtype=torch.float64)
            before = copy.deepcopy(tower).encode_image(x)
            prepared = copy.deepcopy(tower)
            prepared.prepare_inference()
            prepared.prepare_inference()
            assert not any(isinstance(m, (Conv2dSame, torch.nn.BatchNorm2d)) for m in prepared.image.modules())
            after = prepared.encode_image(x)
            for a, b in zip(
                (before.dense, *before.pyramid, *before.stages), (after.dense, *after.pyramid, *after.stages)
            ):
                assert (a - b).abs().max() < 1e-5 * a.abs().max()


def test_logits_are_those_of_the_predictor(predictor):
    """`ImageHalf` with the embeddings of `embed_words` gives the predictor's result, so no text tower is needed."""
    words = Vocabulary.parse("building|house,road")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    text = torch.from_numpy(embed_words(predictor, words))
    with torch.inference_mode():
        logits, _ = ImageHalf(predictor.model)(torch.from_numpy(image).permute(2, 0, 1)[None].float(), text)
        expected = predictor.windows(torch.from_numpy(image).permute(2, 0, 1)[None], words)
    probabilities = torch.stack([logits[0, :2].amax(0), logits[0, 2]]).sigmoid()
    torch.testing.assert_close(probabilities, expected[0], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_file_agrees_with_torch(predictor, tmp_path):
    """A model exported with two 96 x 128 images and five phrases agrees with torch for other image sizes and counts."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "small.onnx"
    facts = export_onnx(predictor, path)
    assert json.loads(path.with_suffix(".json").read_text()) == facts
    assert difference(predictor, path, [(1, 32, 32, 1), (2, 160, 96, 7), (3, 64, 224, 200)]) < 1e-4


def test_models_that_cannot_be_exported_are_errors(call, tmp_path, monkeypatch):
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.NAME = "CostAggregationHead"
    with pytest.raises(ValueError, match="MiniTower with CostAggregationHead cannot be exported yet"):
        export_onnx(Predictor(SkySenseO(cfg).eval()), tmp_path / "a.onnx")
    code, _, err = call("tools/export.py", "--output", tmp_path / "a.pt")
    assert code == 2
    assert "ends in '.pt': write a name that ends in .onnx" in err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = call("tools/export.py", "--output", tmp_path / "a.onnx")
    assert code == 2
    assert 'pip install "skysense_o[onnx]"' in err
