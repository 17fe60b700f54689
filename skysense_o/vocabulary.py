"""Vocabularies: class names, synonyms, background classes. Imports no torch.

A phrase is one name or synonym of a class; a class with two synonyms has three phrases.
Shape letters: C classes, T phrases, D embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from skysense_o.text_files import numbered_lines, read_json_file
from skysense_o.words import OTHER_SIGNS, check_words, split_words

if TYPE_CHECKING:
    from torch import Tensor

HOW_TO_WRITE_WORDS = 'write them as "building,road" or, with synonyms, "building|house|roof,road"'


@dataclass(frozen=True)
class Vocabulary:
    """The classes to segment in one image.

    Attributes:
        classes: C names.
        phrases: for each class its name and synonyms.
        background: for each class whether it is a background class, for pixels of no other class.
        examples: phrase -> unit vector (D,), for phrases that mean a region of an image instead of words.
        narrower_wins: of two right words, such as "forest" and "tree", the narrower one should win, see `Kinds`.
    """

    classes: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    background: tuple[bool, ...]
    examples: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    narrower_wins: bool = True

    @classmethod
    def of(cls, classes: Iterable[str | Sequence[str]], background: Iterable[str] = ()) -> Vocabulary:
        """Build a vocabulary from class names and check it.

        Args:
            classes: one entry per class: a name "road", synonyms "road|street", or a sequence of synonyms. The first
                synonym is the name of the class.
            background: background classes, in the same form; they come after the other classes.

        Raises:
            ValueError: there are no classes, a name is blank, or two classes have the same word (case is ignored).

        >>> vocabulary = Vocabulary.of(["building|house", "road"], background=["field"])
        >>> vocabulary.classes
        ('building', 'road', 'field')
        >>> vocabulary.phrases[0], vocabulary.background
        (('building', 'house'), (False, False, True))
        """
        if isinstance(classes, str) or isinstance(background, str):
            raise ValueError("classes and background must be lists; for one line of text use Vocabulary.parse")
        phrases, flags = [], []
        for entries, flag in ((classes, False), (background, True)):
            for entry in entries:
                words = entry.split("|") if isinstance(entry, str) else list(entry)
                check_words(words)
                words = tuple(dict.fromkeys(" ".join(word.split()) for word in words))
                if not words or not all(words):
                    raise ValueError(f"a class name is blank in {entry!r}: {HOW_TO_WRITE_WORDS}")
                phrases.append(words)
                flags.append(flag)
        if not any(not flag for flag in flags):
            raise ValueError(f"no class names were given: {HOW_TO_WRITE_WORDS}")
        class_of: dict[str, str] = {}
        for words in phrases:
            for word in words:
                if word.lower() in class_of:
                    raise ValueError(
                        f"{word!r} stands for two classes ({class_of[word.lower()]!r} and {words[0]!r}):"
                        " give each class its own words"
                    )
            class_of.update((word.lower(), words[0]) for word in words)
        return cls(tuple(words[0] for words in phrases), tuple(phrases), tuple(flags))

    @classmethod
    def parse(cls, text: str, background: str = "") -> Vocabulary:
        """Build a vocabulary from text: commas between classes, bars between synonyms.

        Args:
            text: the classes, such as "building|house, road".
            background: background classes in the same form; "" for none.

        Raises:
            ValueError: see `of` and `split_words`.

        >>> Vocabulary.parse("building|house, road").classes
        ('building', 'road')
        """
        if not text.strip():
            raise ValueError(f"the class names {text!r} are empty: {HOW_TO_WRITE_WORDS}")
        return cls.of(split_words(text), split_words(background))

    def with_words(self, words: dict[str, Sequence[str]]) -> Vocabulary:
        """Add phrases to the classes (SkySense-O, retrieval augmentation).

        The probability of a class is the maximum over its phrases.

        Args:
            words: class name -> more phrases. Names are compared without case, spaces, hyphens and underscores. Here
                two classes may share a word, as they do in the published lists.

        Raises:
            ValueError: there are words for a class that is not in the vocabulary.

        >>> Vocabulary.parse("road,Low vegetation").with_words({"low_vegetation": ["grass"]}).phrases
        (('road',), ('Low vegetation', 'grass'))
        """
        plain = {_plain(name): name for name in self.classes}
        unknown = [name for name in words if _plain(name) not in plain]
        if unknown:
            raise ValueError(f"words for {unknown}, which are not among the classes {list(self.classes)}")
        more = {plain[_plain(name)]: tuple(extra) for name, extra in words.items()}
        phrases = tuple(
            tuple(dict.fromkeys((*own, *more.get(name, ())))) for name, own in zip(self.classes, self.phrases)
        )
        return replace(self, phrases=phrases)

    def with_examples(self, examples: Mapping[str, Tensor]) -> Vocabulary:
        """Add classes at the end that mean "looks like this region".

        Args:
            examples: class name -> embedding (D,) of a region in the text space, see `PromptedImage.embed`.

        Raises:
            ValueError: the name is already a phrase of the vocabulary.
        """
        taken = {word.lower() for words in self.phrases for word in words}
        twice = [name for name in examples if name.lower() in taken]
        if twice:
            raise ValueError(f"{twice} are already phrases of this vocabulary: give the examples other names")
        return replace(
            self,
            classes=(*self.classes, *examples),
            phrases=(*self.phrases, *((name,) for name in examples)),
            background=(*self.background, *(False for _ in examples)),
            examples={**self.examples, **examples},
        )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def phrase_to_class(self) -> list[int]:
        """T class indices, ascending: the class of each phrase.

        >>> Vocabulary.parse("building|house,road").phrase_to_class
        [0, 0, 1]
        """
        return [c for c, words in enumerate(self.phrases) for _ in words]


def as_vocabulary(classes: Vocabulary | Sequence[str] | str, background: Sequence[str] | str) -> Vocabulary:
    """Make a vocabulary from the arguments `classes` and `background` of `Predictor.__call__`."""
    extra = split_words(background) if isinstance(background, str) else background or ()
    if isinstance(classes, Vocabulary):
        if extra:
            raise ValueError("the Vocabulary holds its own background words: leave out the argument background")
        return classes
    return Vocabulary.of(split_words(classes) or [""] if isinstance(classes, str) else classes, extra)


LIST_MARKER = re.compile(r"[-*+] |\d+ ?[.:)] ")
"""Bullets and numbers that people write before the entries of a list."""


def read_class_file(path: str | Path) -> list[str]:
    """Read a file with one class per line and bars between synonyms; lines that begin with # are comments.

    Raises:
        ValueError: a line has several classes or a comment, no line has a class, or the file is not UTF-8.
    """
    lines = [(number, line) for number, line in numbered_lines(path) if not line.startswith("#")]
    for number, line in lines:
        marker = LIST_MARKER.match(line)
        sign = next((sign for sign in "," + OTHER_SIGNS if sign in line), marker and marker[0])
        if sign:
            raise ValueError(
                f"{path}, line {number}: {line[:100]!r} has {sign!r}: write one class per line, synonyms with bars,"
                " nothing around them, and comments on lines of their own"
            )
    if not lines:
        raise ValueError(f"{path} has no class: write one per line")
    return [line for _, line in lines]


def read_retrieval_words(path: str | Path) -> dict[str, list[str]]:
    """Read the published file of retrieval words (`o1.json`).

    Returns:
        class name -> words, without the key "except".

    Raises:
        ValueError: the file is not an object of class name -> list of words.
    """
    table = read_json_file(path)
    if not isinstance(table, dict) or not all(isinstance(words, list) for words in table.values()):
        raise ValueError(f"{path} is not a table of retrieval words: expected an object of class name -> list of words")
    return {name: words for name, words in table.items() if name != "except"}


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
