"""Fixtures for all tests: tiny data sets with the real layout, a small untrained model, and the shipped model."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skysense_o.checkpoint import SHIPPED
from skysense_o.config import default_config
from skysense_o.data.classes import load_classes
from skysense_o.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(2)


@pytest.fixture
def root() -> Path:
    return ROOT


def small_config():
    """Return the config of a narrow model made of the real modules; only MiniLM has its real size and weights."""
    cfg = default_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TOWER.PRETRAINED = False
    cfg.MODEL.TOWER.WIDTH = 16
    head = cfg.MODEL.SEM_SEG_HEAD
    head.WIDTH, head.DEPTH, head.HEADS, head.MLP, head.SHARED_TOKENS = 32, 2, 4, 64, 3
    return cfg


@pytest.fixture
def cfg():
    return small_config()


@pytest.fixture
def llama(tmp_path):
    """Return the folder of a tiny language model with random weights."""
    from tiny_llama import make_llama

    return make_llama(tmp_path / "llama")


@pytest.fixture(scope="session")
def small_model():
    """Return a small untrained model in eval mode; it is shared, so tests that change a model build their own."""
    from skysense_o.meta_arch import SkySenseO

    torch.manual_seed(0)
    return SkySenseO(small_config()).eval()


@pytest.fixture(scope="session")
def mini():
    """Return a predictor with the shipped model."""
    from skysense_o import Predictor

    assert (SHIPPED / "mini.safetensors").is_file(), "the shipped weights are part of the repository"
    return Predictor.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="session")
def words_only():
    """Return a predictor with the shipped model, but without the modules that handle clicks and boxes."""
    from skysense_o import Predictor

    predictor = Predictor.from_pretrained("mini", device="cpu")
    head = predictor.model.sem_seg_head
    head.takes_prompts, head.prompts, head.prompt_quality = False, None, None
    return predictor


@pytest.fixture(autouse=True)
def unexpected_errors_are_raised(monkeypatch):
    """Raise unexpected exceptions with a traceback in tests; batch commands would report each as one line instead."""
    monkeypatch.setenv("SKYSENSE_O_TRACEBACK", "unexpected")


@pytest.fixture(autouse=True)
def logs_reach_the_tests():
    """Undo Detectron2's logger setup after each test, so that later tests still receive log messages."""
    yield
    for name in ("skysense_o", "detectron2", "fvcore"):
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers.clear()


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image of coloured fields and its label image; each class of Dubai has one colour, so learning is easy."""
    labels = np.ones((height, width), np.uint8)
    labels[: height // 3] = 0
    labels[height // 2 : height // 2 + height // 8] = 2
    x, y = rng.integers(0, width // 2), height * 2 // 3
    labels[y : y + height // 4, x : x + width // 3] = 3
    labels[y:, width * 3 // 4 :] = 4
    labels[:2, :2] = 255
    colors = np.array(load_classes("dubai").colors, np.int16)
    image = colors[np.minimum(labels, 4)] + rng.integers(-12, 13, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), labels


def drawn_samples(count: int) -> list[dict]:
    """Training samples of drawn scenes, with Dubai's classes."""
    rng, out = np.random.default_rng(3), []
    for _ in range(count):
        pixels, labels = draw_scene(rng, 64, 96)
        image, truth = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels.astype(np.int64))
        words = Vocabulary.of(["water", "land", "road", "building", "vegetation"])
        out.append({"image": image, "sem_seg": truth, "vocabulary": words})
    return out


@pytest.fixture
def dubai(tmp_path, monkeypatch) -> Path:
    """Make a tiny Dubai data set with real folder and file names; return its folder and set DETECTRON2_DATASETS."""
    folder = tmp_path / "data" / "dubai"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    for stem in ("tile1_001", "tile1_002", "tile2_001", "tile8_003", "tile5_001", "tile6_001"):
        image, labels = draw_scene(rng, 97, 131)
        Image.fromarray(image).save(folder / "images" / f"{stem}.jpg", quality=95)
        Image.fromarray(labels).save(folder / "labels" / f"{stem}.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return folder


@pytest.fixture
def pairs(dubai) -> Path:
    """Make eight captioned images of two classes, one colour per class, next to Dubai; return the folder `pairs`."""
    folder, rng, lines = dubai.parent / "pairs", np.random.default_rng(0), []
    for split, count in (("train", 4), ("test", 2)):
        for name, color in (("river", (40, 60, 200)), ("greenForest", (30, 160, 40))):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = np.clip(np.array(color) + rng.integers(-20, 21, (70, 90, 3)), 0, 255).astype(np.uint8)
                file = f"images/{name}/{split}{i}.png"
                Image.fromarray(image).save(folder / file)
                captions = [f"a {name} .", f"image {i} of a {name} ."]
                lines.append(json.dumps({"image": file, "split": split, "captions": captions}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """Make questions like RSIVQA's about UC Merced; the question alone never determines the answer, the colour does."""
    folder, rng, lines = tmp_path / "data" / "ucmerced", np.random.default_rng(0), []
    colors = {"river": (40, 60, 200), "forest": (30, 160, 40), "beach": (230, 210, 130)}
    for split, count in (("train", 3), ("test", 1)):
        for name, color in colors.items():
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                file = f"images/{name}/{split}{i}.png"
                image = np.clip(np.array(color) + rng.integers(-9, 10, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(image).save(folder / file)
                asked = [("what is the theme of this image?", name, "theme")]
                asked += [("Does this image contain trees?", "yes" if name == "forest" else "no", "human")]
                asked += [("How many boats in the image?", "two" if name == "river" else "zero", "human")]
                keys = ("question", "answer", "kind")
                lines += [json.dumps({"image": file, "split": split, **dict(zip(keys, row))}) for row in asked]
    (folder / "vqa.jsonl").write_text("\n".join(lines))
    boats = [{"image": f"river/train{i}", "what": "boat", "points": [[9, 20], [50, 40]]} for i in range(3)]
    (folder / "points.jsonl").write_text("\n".join(map(json.dumps, boats)))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return folder


def load_script(path: str):
    """Import a script of tools/ or demo/ as a module without running it."""
    name = "script_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs a script in this process: call("demo/demo.py", ...) -> exit code, stdout, stderr."""

    def run(script: str, *words: str) -> tuple[int, str, str]:
        module = load_script(script)
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        capsys.readouterr()
        try:
            code = module.exit_code(module.run)
        except SystemExit as stop:
            code = stop.code
        finally:
            logging.getLogger().handlers.clear()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def work(tmp_path):
    """Return a work folder of the data engine that contains regions to review."""
    from review_work import make_work

    make_work(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def review(work):
    from skysense_o.data_engine.review.session import Review

    return Review(work)


@pytest.fixture
def tile(review):
    return next(iter(review.tiles))


@pytest.fixture(scope="session")
def prompted():
    """Return a predictor with a small untrained model that takes clicks and boxes."""
    from skysense_o import Predictor
    from skysense_o.meta_arch import SkySenseO

    torch.manual_seed(0)
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.PROMPTS = True
    return Predictor(SkySenseO(cfg))


@pytest.fixture
def halves(tmp_path):
    """Return a data-engine work folder with four tiles, each split into a left and a right region."""
    from skysense_o.data_engine.collect import collect
    from skysense_o.data_engine.propose import propose
    from skysense_o.data_engine.work_folder import WorkFolder

    folder, rng = tmp_path / "halves", np.random.default_rng(0)
    folder.mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    work = WorkFolder(tmp_path / "work")
    collect(work, sorted(folder.iterdir()), side=64)
    halves = np.ones((48, 64), int)
    halves[:, 32:] = 2
    propose(work, lambda rgb: (halves, np.ones(halves.shape)))
    return work
