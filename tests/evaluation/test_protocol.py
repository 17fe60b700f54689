"""Tests of evaluation protocols: resizing, windows, augmented views and thresholds, on images with odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from skysense_o.config import default_config, merge_file
from skysense_o.evaluation.protocol import Protocol, protocol_file
from skysense_o.vocabulary import Vocabulary

WORDS = Vocabulary.of(["water", "road", "tree"])
NAMES = sorted(p.stem for p in (ROOT / "configs/protocols").glob("*.yaml"))


def protocol(name: str, *words) -> Protocol:
    cfg = default_config()
    merge_file(cfg, protocol_file(name))
    cfg.merge_from_list(list(words))
    return Protocol.from_config(cfg)


def sample(height: int, width: int, vocabulary: Vocabulary = WORDS) -> dict:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return {"image": image, "vocabulary": vocabulary}


class Local:
    """A model that predicts each pixel from its own colour, so windows must give the same result as the whole image.

    Class 0 is red, 1 green and 2 blue. The sliding-window `Plan` reads the attributes `tower` and `stride`.
    """

    stride, device = 1, torch.device("cpu")

    class tower:
        input_size, divisor = None, 32

    def predict_windows(self, windows, vocabulary):
        return windows.float() / 255

    def predict(self, samples, reduce):
        found = []
        for s in samples:
            size = s.get("height", s["image"].shape[-2]), s.get("width", s["image"].shape[-1])
            p = F.interpolate(s["image"][None].float() / 255, size, mode="bilinear")[0]
            score, labels = p.max(0)
            found.append({"labels": labels, "score": score} if reduce == "labels" else {"sem_seg": p})
        return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(300, 1), (1, 40), (17, 3001), (97, 131)])
def test_odd_sizes(small_model, name, size):
    labels = protocol(name).labels(small_model, sample(*size))
    assert tuple(labels.shape) == size
    assert 0 <= int(labels.min()) <= int(labels.max()) < 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["published", "native"])
def test_a_large_image(small_model, name):
    assert tuple(protocol(name).labels(small_model, sample(3000, 4000)).shape) == (3000, 4000)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("native", ("TEST.WINDOW", 64)),
        ("flips", ("TEST.WINDOW", 64, "TEST.OVERLAP", 0)),
        ("flips", ("TEST.WINDOW", 0)),
        ("multiscale", ("TEST.WINDOW", 64, "TEST.SCALES", [1.0, 1.0])),
    ],
)
def test_views_and_windows_of_a_local_model_agree_with_the_whole(name, words):
    s = sample(150, 211)
    whole = s["image"].float().argmax(0)
    assert (protocol(name, *words).labels(Local(), s) == whole).float().mean() > 0.999, (
        "labels may differ only where two classes have equal scores"
    )


def test_scales_are_averaged():
    """Averaging several scales does not change the labels of a uniform image, but changes those of a checkerboard."""
    even = {"image": torch.full((3, 64, 64), 90, dtype=torch.uint8), "vocabulary": WORDS}
    even["image"][1] = 200
    assert (protocol("multiscale").labels(Local(), even) == 1).all()
    board = sample(64, 64)
    one, more = protocol("native"), protocol("multiscale", "TEST.SCALES", [0.25])
    assert not torch.equal(one.labels(Local(), board), more.labels(Local(), board))


def test_published_resizes_as_detectron2_does(monkeypatch):
    shown = []
    model = Local()
    monkeypatch.setattr(model, "predict", lambda s, r: shown.append(s[0]["image"].shape) or Local.predict(model, s, r))
    assert tuple(protocol("published").labels(model, sample(120, 240)).shape) == (120, 240)
    protocol("published").labels(model, sample(17, 3001))
    assert [tuple(x) for x in shown] == [(3, 640, 1280), (3, 15, 2560)]
    cfg = default_config()
    merge_file(cfg, protocol_file("published"))
    assert cfg.MODEL.REFERENCE_COMPAT


def test_background_words_and_thresholds():
    """Blue (a background word) and weak green (below its class threshold) pixels get the label `rest`."""
    image = torch.zeros((3, 1, 4), dtype=torch.uint8)
    image[0, 0, 0], image[1, 0, 1], image[1, 0, 2], image[2, 0, 3] = 255, 255, 100, 255
    one = protocol("native", "TEST.WINDOW", 0, "TEST.BACKGROUND", ["sky"], "TEST.CLASS_THRESHOLDS", [["road", 0.5]])
    words = one.words(Vocabulary.of(["water", "road"]), "any")
    assert words.classes == ("water", "road", "sky")
    s = {"image": image, "vocabulary": words}
    assert one.labels(Local(), s).tolist() == [[0, 1, 2, 2]], (
        "with two class names, label 2 means that no class was found"
    )
    assert one.labels(Local(), s, rest=0).tolist() == [[0, 1, 0, 0]]
    all_names = protocol("native", "TEST.WINDOW", 0, "TEST.THRESHOLD", 0.5)
    assert all_names.labels(Local(), {"image": image, "vocabulary": WORDS}).tolist() == [[0, 1, 3, 2]]


def test_retrieval_words_come_from_a_file_for_each_class_table(tmp_path):
    (tmp_path / "dubai.json").write_text('{"Water": ["lake", "sea"], "except": ["x"]}')
    one = protocol("native", "TEST.RETRIEVAL", str(tmp_path / "{}.json"))
    assert one.words(WORDS, "dubai").phrases[0] == ("water", "lake", "sea")
    with pytest.raises(FileNotFoundError, match="TEST.RETRIEVAL .*: no file .*isaid.json"):
        one.words(WORDS, "isaid")


def test_mistakes_are_named():
    with pytest.raises(
        FileNotFoundError,
        match="TEST.PROTOCOL 'best' is neither a file nor a protocol: choose one of flips, multiscale",
    ):
        protocol_file("best")
    with pytest.raises(ValueError, match=r"\[1.5\] are out of range: 0 to 1"):
        protocol("native", "TEST.THRESHOLD", 1.5)
    with pytest.raises(ValueError, match=r"TEST.SCALES \[0.0\] are out of range"):
        protocol("native", "TEST.SCALES", [0.0])
