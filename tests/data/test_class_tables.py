"""Tests of class tables, held-out words (never seen in training) and distractors (absent words used in training)."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from conftest import ROOT

from skysense_o.config import default_config
from skysense_o.data.catalog import SPECS
from skysense_o.data.classes import CLASSES_FOLDER, load_classes, load_distractors
from skysense_o.vocabulary import Vocabulary

BOXES = ("vehicles", "ships", "crowns", "trees")
NEW = ("czech", "roads", "buildings", *BOXES, "rsicd", "scenes12", "ucmerced")
TRAINED = ("dubai", *NEW)
"""The tables whose words training may draw; held-out words must be far from all these words."""
MARKED = ("ucmerced_marks", "ucmerced_shapes", "land_shapes")
"""Tables that have no held-out words, because their images also belong to a table of TRAINED, which has some."""
TESTED = (*NEW, "drone")
HELDOUT = json.loads((ROOT / "tests/reference/heldout_words.json").read_text())
SEA_BLUE = (38, 120, 226)
WATER = {
    "water",
    "river",
    "lake",
    "pond",
    "port",
    "harbor",
    "pool",
    "sea",
    "inland water",
    "surf",
    "marina",
    "reservoir",
}
WATER |= {"swimming pool", "waves"}


def rows_of(name: str) -> list[dict]:
    return json.loads((CLASSES_FOLDER / f"{name}.json").read_text())["classes"]


def words_of(row: dict) -> list[str]:
    """Return all words of a class: its name, synonyms and kinds, such as "wheat field" for vegetation."""
    return [row["name"], *row.get("synonyms", ()), *row.get("kinds", ())]


def stem(word: str) -> str:
    for ending in ("ing", "es", "ed", "s", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def tokens(phrase: str) -> list[str]:
    return phrase.lower().replace("-", " ").split()


@pytest.fixture(scope="module")
def trained() -> dict[str, str]:
    """Return {stem: phrase} for every word that training can use."""
    cfg = default_config()
    cfg.merge_from_file(str(ROOT / "configs/mini/finetune.yaml"))
    rows = list(itertools.chain(*map(rows_of, (*TRAINED, *MARKED))))
    phrases = [*cfg.MODEL.TEMPLATES, *load_distractors(cfg.INPUT.DISTRACTOR_FILE)]
    phrases += [phrase for row in rows for phrase in (*words_of(row), row.get("parent", ""))]
    return {stem(token): phrase for phrase in phrases for token in tokens(phrase)}


@pytest.mark.parametrize("name", HELDOUT)
def test_heldout_words_share_no_stem_with_training_words(name, trained):
    assert list(HELDOUT[name]) == list(load_classes(name).classes)
    for heldout in HELDOUT[name].values():
        assert len(set(heldout)) == 3
        for token in itertools.chain(*map(tokens, heldout)):
            near = {
                phrase
                for s, phrase in trained.items()
                if s == stem(token) or (len(s) > 3 and (token.startswith(s) or s.startswith(stem(token))))
            }
            assert not near, f"{token!r} is near {near}"


@pytest.mark.parametrize("name", HELDOUT)
def test_each_set_of_heldout_words_is_a_vocabulary(name):
    for k in range(3):
        assert len(Vocabulary.of([words[k] for words in HELDOUT[name].values()])) == len(load_classes(name))


def test_every_trained_set_has_heldout_words():
    assert {*TRAINED, *TESTED} == set(HELDOUT)


@pytest.mark.parametrize("path", sorted(CLASSES_FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_class_tables_are_valid(path):
    table = load_classes(path.stem)
    # `Vocabulary.of` raises an error if a word stands for two classes.
    Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)])
    assert len(set(table.colors)) == len(table)
    assert path.stem == "open_world" or path.stem in {spec.class_table_name for spec in SPECS}


@pytest.mark.parametrize("name", [*TESTED, "ucmerced_shapes"])
def test_every_class_has_many_synonyms(name):
    for row in rows_of(name):
        if not row.get("background"):
            assert len(row["synonyms"]) >= 10, row["name"]
            assert len(words_of(row)) >= 20, row["name"]
        assert len({word.lower() for word in words_of(row)}) == len(words_of(row)), row["name"]


@pytest.mark.parametrize("name", TESTED)
def test_hyponyms_are_not_classes_of_their_table(name):
    """A word is either a synonym of the whole class or a kind (hyponym) of it, never both."""
    rows = rows_of(name)
    whole = {word.lower() for row in rows for word in (row["name"], *row.get("synonyms", ()))}
    for row in rows:
        assert not {word.lower() for word in row.get("kinds", ())} & whole, row["name"]


@pytest.mark.parametrize("name", TESTED)
def test_colors_are_distinguishable(name):
    table = load_classes(name)
    if len(table) <= 12:
        assert all(color_difference(a, b) >= 20 for a, b in itertools.combinations(table.colors, 2))
    for word, color in zip(table.classes, table.colors):
        assert word in WATER or color_difference(color, SEA_BLUE) >= 20, f"{word} is sea blue"


def test_distractors_are_not_synonyms():
    table = load_classes("dubai")
    known = {w.lower() for n, s in zip(table.classes, table.synonyms) for w in (n, *s)}
    assert not known & {w.lower() for w in load_distractors("distractors.txt")}


@pytest.mark.parametrize(
    ("one", "two", "difference"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
        ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ],
)
def test_color_difference_equals_published_values(one, two, difference):
    """The colour pairs and their differences are from the test data of Sharma, Wu and Dalal (2005)."""
    assert ciede2000(one, two) == pytest.approx(difference, abs=1e-4)


def color_difference(one: tuple[int, int, int], two: tuple[int, int, int]) -> float:
    """Return the CIEDE2000 difference between two sRGB colours."""
    return ciede2000(lab(one), lab(two))


def lab(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """Convert an sRGB colour to CIELAB under illuminant D65."""
    r, g, b = ((v / 255 + 0.055) / 1.055 if v > 10 else v / 255 / 12.92 for v in color)
    r, g, b = (v**2.4 if channel > 10 else v for v, channel in zip((r, g, b), color))
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    x, y, z = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def ciede2000(one: tuple[float, float, float], two: tuple[float, float, float]) -> float:
    """Return the CIEDE2000 difference of two CIELAB colours; variable names follow Sharma, Wu and Dalal (2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    mean = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * math.sqrt(mean**7 / (mean**7 + 25**7))
    c1, c2 = math.hypot(a1 * stretch, b1), math.hypot(a2 * stretch, b2)
    h1, h2 = math.degrees(math.atan2(b1, a1 * stretch)) % 360, math.degrees(math.atan2(b2, a2 * stretch)) % 360
    dh = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    h, c, light = (h1 + dh / 2, (c1 + c2) / 2, (l1 + l2) / 2) if c1 * c2 else (h1 + h2, (c1 + c2) / 2, (l1 + l2) / 2)
    dl, dc, dhue = l2 - l1, c2 - c1, 2 * math.sqrt(c1 * c2) * math.sin(math.radians(dh / 2))
    cosine = [math.cos(math.radians(k * h + shift)) for k, shift in ((1, -30), (2, 0), (3, 6), (4, -63))]
    t = 1 - 0.17 * cosine[0] + 0.24 * cosine[1] + 0.32 * cosine[2] - 0.20 * cosine[3]
    sl, sc, sh = 1 + 0.015 * (light - 50) ** 2 / math.sqrt(20 + (light - 50) ** 2), 1 + 0.045 * c, 1 + 0.015 * c * t
    turn = math.radians(60 * math.exp(-(((h % 360 - 275) / 25) ** 2)))
    rt = -2 * math.sqrt(c**7 / (c**7 + 25**7)) * math.sin(turn)
    return math.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dhue / sh) ** 2 + rt * (dc / sc) * (dhue / sh))
