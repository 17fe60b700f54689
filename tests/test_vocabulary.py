"""Tests of vocabularies and of the cache of text embeddings."""

from __future__ import annotations

import pytest
import torch

from skysense_o.text_bank import TextBank
from skysense_o.vocabulary import Vocabulary, read_class_file


def test_a_line_becomes_classes_and_synonyms():
    v = Vocabulary.parse("building|house| roof , road", background="sky,sea")
    assert v.classes == ("building", "road", "sky", "sea")
    assert v.phrases[0] == ("building", "house", "roof")
    assert v.background == (False, False, True, True)


@pytest.mark.parametrize("text", ["", "  ", ",", "road,", "road,,tree", "road| "])
def test_empty_and_blank_names_are_an_error(text):
    with pytest.raises(ValueError, match=r'blank|empty.*"building,road"'):
        Vocabulary.parse(text)


@pytest.mark.parametrize("text", ["road,road", "road,Road", "road|street,street"])
def test_the_same_word_twice_is_an_error(text):
    with pytest.raises(ValueError, match="stands for two classes"):
        Vocabulary.parse(text)


@pytest.mark.parametrize("sign", [*";；؛，、،｜•\t\n\0\x85\u2028", " # ", '", "'])
def test_other_signs_between_classes_are_an_error_that_says_how_to_write_them(sign):
    for words in ({"text": f"road{sign}tree"}, {"text": "sea", "background": f"road{sign}tree"}):
        with pytest.raises(ValueError, match=r'the class names .* have .*: write them as "building,road"'):
            Vocabulary.parse(**words)
    assert Vocabulary.of(["road; paved"]).classes == ("road; paved",), (
        "names given as a list need no separators, so they may contain any sign"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_of_classes_has_one_per_line_and_comments(tmp_path, encoding):
    path = tmp_path / "words.txt"
    path.write_text("# our classes\r\nbuilding|house\r\n\r\n  Straße  \n#the end", encoding=encoding)
    assert read_class_file(path) == ["building|house", "Straße"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"sea\nroad, tree\n", r"words.txt, line 2: 'road, tree' has ','"),
        (b"road;tree", r"line 1: 'road;tree' has ';'"),
        ("road，tree".encode(), "line 1: .* has '，'"),
        ("road、tree".encode(), "line 1: .* has '、': write one class per line, synonyms with bars, nothing"),
        ("building｜house".encode(), "line 1: .* has '｜': write one class per line, synonyms with bars"),
        (b"# list\n- sea\n- road", "line 2: '- sea' has '- ': .* nothing around them, and comments on lines of"),
        (b"1. sea\n2. road", "line 1: '1. sea' has '1. '"),
        (b"0: sea", "line 1: '0: sea' has '0: '"),
        (b'"sea"', """line 1: '"sea"' has '"'"""),
        (b"sea\0", r"has '.x00'"),
        (b"road # paved", "line 1: 'road # paved' has '#'"),
        (b"1\troad", r"line 1: '1.troad' has '.t'"),
        (b"# nothing\n\n", "words.txt has no class: write one per line"),
        (b"", "words.txt has no class"),
        ("Straße".encode("latin-1"), "words.txt is not UTF-8 text .byte 0xdf at 4.: save it with the encoding UTF-8"),
        ("road".encode("utf-16"), "words.txt is not UTF-8 text"),
    ],
)
def test_a_wrong_file_of_classes_names_the_line(tmp_path, data, says):
    (tmp_path / "words.txt").write_bytes(data)
    with pytest.raises(ValueError, match=says):
        read_class_file(tmp_path / "words.txt")


def test_background_alone_is_not_enough():
    with pytest.raises(ValueError, match="no class names"):
        Vocabulary.of([], ["sky"])


class Counting:
    """A text tower that records the strings it encodes."""

    dim = 4

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.randn(4, 4), requires_grad=False)
        self.pixel_mean, self.seen = torch.zeros(3, 1, 1), []

    def text_parameters(self):
        return [self.weight]

    def encode_text(self, strings):
        self.seen += strings
        raw = torch.stack([torch.tensor([float(ord(c)) for c in (s + "    ")[:4]]) for s in strings])
        return torch.nn.functional.normalize(raw @ self.weight, dim=-1)


ONE, TWO = Vocabulary.parse("road,tree|oak"), Vocabulary.parse("tree,car,oak")


def test_each_string_is_encoded_once():
    tower, bank = Counting(), TextBank()
    first = bank(tower, [ONE], ["{}", "a {}"])[0]
    assert len(tower.seen) == 6
    assert torch.equal(bank(tower, [ONE], ["{}", "a {}"])[0], first)
    assert len(tower.seen) == 6
    bank(tower, [ONE, TWO], ["{}", "a {}"])
    assert tower.seen[6:] == ["car", "a car"]


def test_cached_equals_uncached_and_padding_is_marked():
    tower = Counting()
    text, valid = TextBank()(tower, [Vocabulary.parse("road"), TWO], ["{}"])
    assert text.shape == (2, 3, 1, 4)
    assert valid.tolist() == [[True, False, False], [True, True, True]]
    assert ONE.phrase_to_class == [0, 1, 1]
    assert torch.equal(text[1, :, 0], tower.encode_text(["tree", "car", "oak"]))


def test_weights_changed_gives_new_vectors():
    tower, bank = Counting(), TextBank()
    before = bank(tower, [ONE], ["{}"])[0]
    tower.weight.data.neg_()
    bank.weights_changed()
    assert torch.equal(bank(tower, [ONE], ["{}"])[0], -before)


def test_a_text_tower_that_trains_is_run_and_keeps_its_gradient():
    tower, bank = Counting(), TextBank()
    bank(tower, [ONE], ["{}"])
    tower.weight.requires_grad_(True)
    for _ in range(2):
        bank(tower, [ONE], ["{}"])[0].sum().backward()
    assert tower.weight.grad is not None
    assert len(tower.seen) == 9


@torch.no_grad()
def test_exported_vectors_serve_without_the_tower(tmp_path):
    tower, bank = Counting(), TextBank()
    want = bank(tower, [ONE], ["{}"])[0]
    bank.export(tmp_path / "text.safetensors")
    other = TextBank()
    other.load(tmp_path / "text.safetensors")
    tower.seen.clear()
    assert torch.equal(other(tower, [ONE], ["{}"])[0], want)
    assert tower.seen == []


def test_the_cache_is_not_in_the_state_dict(small_model):
    before = set(small_model.state_dict())
    small_model.text_bank(small_model.tower, [ONE], ["{}"])
    assert set(small_model.state_dict()) == before


def test_same_meaning_lies_near_in_minilm(small_model):
    street, road, lake = small_model.tower.encode_text(["street", "road", "lake"])
    assert street @ road > street @ lake + 0.1
    assert street.norm() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("words", [["road", "b\udce4um"], ["road|b\udce4um"], ["road", ["tree", "b\udce4um"]]])
def test_words_that_are_no_utf8_are_refused(words):
    with pytest.raises(ValueError, match=r"the word 'b\\udce4um' is not UTF-8 text: write it in a UTF-8 terminal"):
        Vocabulary.of(words)


@pytest.mark.parametrize("word", [3, None, True, 1.5])
def test_words_that_are_no_text_are_refused(word):
    with pytest.raises(ValueError, match="is not text: put it in quotes"):
        Vocabulary.of([["road", word]])
