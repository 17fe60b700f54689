"""Tests that the links, commands and code of the documents are correct."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch
from conftest import ROOT, load_script, small_config

from skysense_o import losses
from skysense_o.cli.train_process import merge_words
from skysense_o.config import default_config
from skysense_o.data import records
from skysense_o.data.check import check_data_set
from skysense_o.data.datasets.spec import DatasetSpec
from skysense_o.meta_arch import SkySenseO
from skysense_o.sample import IGNORE
from skysense_o.vocabulary import Vocabulary

PAGES = sorted((ROOT / "docs").rglob("*.md"))
COMMAND = re.compile(r"^ {4}(?:python|bash|torchrun|accelerate) (?:[^.\n]* )?(\S+\.(?:py|sh))(.*)$", re.M)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_index_names_every_page():
    index = (ROOT / "docs/README.md").read_text()
    assert [
        p.name
        for p in (ROOT / "docs").glob("*.md")
        if p.name != "README.md" and "experiments" not in p.name and p.name not in index
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_commands_are_ones_that_the_parsers_take(page):
    for line in COMMAND.finditer(page.read_text().replace("\\\n", " ")):
        script, words = line[1], shlex.split(line[2], comments=True)
        assert (ROOT / script).is_file(), line[0]
        if "..." in words or "CONFIG" in words:  # this line shows the usage, it is not a command to run
            continue
        if script in ("run_train.sh", "run_eval.sh"):
            takes(words[0], [word for word in words[3:] if word != "--resume"])
        elif script == "demo.sh":
            load_script("demo/demo.py").parser().parse_args(["--input", "a", "--output", "b", *words[2:]])
        elif script.endswith(".py"):
            args = load_script(script).parser().parse_args(words)
            if script == "tools/train_net.py":
                takes(args.config_file, args.opts)


def takes(config: str, changes: list[str]) -> None:
    """Check that the config exists and has the changed keys, except MODEL.LOSS.TVERSKY, which extending.md adds."""
    cfg, pairs = default_config(), list(zip(changes[::2], changes[1::2], strict=True))
    cfg.merge_from_file(str(ROOT / config))
    words = [word for pair in pairs if pair[0] != "MODEL.LOSS.TVERSKY" for word in pair]
    merge_words(cfg, words)


@pytest.fixture
def registered(monkeypatch):
    """After the test, remove the classes that the code of the documentation pages registers."""
    from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

    from skysense_o.modeling import TOWER_REGISTRY

    for registry in (SEM_SEG_HEADS_REGISTRY, TOWER_REGISTRY):
        rest = {key: value for key, value in registry._obj_map.items() if key not in ("ResNetTower", "CosineHead")}
        # If somebody has followed the page, its classes are already registered, so hide their names.
        monkeypatch.setattr(registry, "_obj_map", rest)


def trains_and_sees(cfg, untouched: str = "$") -> None:
    """Check that a training step gives a gradient to all parameters except `untouched` ones, and predict once."""
    model, words = SkySenseO(cfg), Vocabulary.of(["road", "water"])
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    sample = {"image": image, "vocabulary": words, "sem_seg": torch.randint(0, 2, (70, 90))}
    sum(model.train()([sample]).values()).backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert [name for name in lacking if not re.search(untouched, name)] == []
    found = model.eval()([sample])[0]
    assert found["labels"].shape == found["score"].shape == (70, 90)


def test_the_page_s_tower(registered):
    exec(blocks("extending.md", "python")[0], {"__name__": "resnet_tower"})
    cfg = small_config()
    cfg.MODEL.TOWER.NAME = "ResNetTower"
    trains_and_sees(cfg)


def test_the_page_s_decoder(registered):
    exec(blocks("extending.md", "python")[1], {"__name__": "cosine_head"})
    cfg = small_config()
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.LOSS.PRESENCE = "CosineHead", 0.0
    trains_and_sees(cfg, untouched=r"^tower\.(smooth\.[12]|lateral\.[23])")


def test_the_page_s_loss_against_its_twin():
    place = dict(vars(losses))
    exec(blocks("extending.md", "python")[2], place)
    torch.manual_seed(0)
    logits, valid = torch.randn(2, 3, 5, 6), torch.tensor([[True] * 3, [True, True, False]])
    sem_seg = torch.randint(0, 2, (2, 5, 6))
    sem_seg[0, 0] = IGNORE
    means = []
    for b in range(2):
        each = []
        for name in range(2):  # class 2 has no pixel in either image, so it has no loss
            both = wrong = lost = 0.0
            for y in range(5):
                for x in range(6):
                    if sem_seg[b, y, x] != IGNORE:
                        p, own = logits[b, name, y, x].sigmoid().item(), float(sem_seg[b, y, x] == name)
                        both, wrong, lost = both + p * own, wrong + p * (1 - own), lost + (1 - p) * own
            each.append(1 - (both + 1) / (both + 0.3 * wrong + 0.7 * lost + 1))
        means.append(sum(each) / len(each))
    assert place["tversky"](logits, sem_seg, valid).item() == pytest.approx(sum(means) / 2, abs=1e-5)
    half = place["tversky"](logits, sem_seg, valid, missed=0.5)
    ignored = torch.full_like(sem_seg, IGNORE)
    assert half.isfinite()
    assert place["tversky"](logits, ignored, valid) == 0


def test_the_page_s_reader(tmp_path, monkeypatch):
    place = dict(vars(records))
    exec(blocks("extending.md", "python")[3], place)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setitem(records.READERS, "named pairs", place["read_named_pairs"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.txt").write_text("a.jpg\tb.png\n")
    facts = {"homepage": "", "licence": "", "citation": "", "splits": {"train": "*"}}
    spec = DatasetSpec(name="mine", task="segmentation", format="named pairs", index="{split}.txt", **facts)
    with pytest.raises(FileNotFoundError, match=r"mine/a.jpg has no label image .*mine/b.png: get mine"):
        records.load_split(spec, "train")
    with pytest.raises(FileNotFoundError, match=r"no .*mine/val.txt, which lists mine_val: get mine"):
        records.load_split(spec, "val")
    (tmp_path / "mine/b.png").touch()
    (record,) = records.load_split(spec, "train")
    assert record["file_name"].endswith("mine/a.jpg")
    assert record["sem_seg_file_name"].endswith("mine/b.png")


def test_the_page_s_data_set_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(blocks("own_dataset.md", "python")[0], {})
    train, val = check_data_set("mine", progress=False)
    assert (train.images, val.images) == (4, 2)
    assert train.problems == val.problems == []


def test_the_page_s_row_and_class_table():
    spec = eval(blocks("own_dataset.md", "python")[1], {"DatasetSpec": DatasetSpec})
    assert spec.split_names() == {"harbor_train": "train", "harbor_val": "val"}
    from skysense_o.data.classes import table_of

    assert table_of(json.loads(blocks("own_dataset.md", "json")[0])["classes"], "the page").classes[1] == "quay"
