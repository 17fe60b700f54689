"""Check and split words that people write."""

from __future__ import annotations

from collections.abc import Iterable

OTHER_SIGNS = ';；؛，、،｜#"•\t\n\0\x85\u2028\u2029'
"""Signs that people write between or around classes, or before comments; commas separate classes."""


def split_words(text: str, refused: str = OTHER_SIGNS) -> list[str]:
    """Split a line of classes at its commas; a blank text has no classes.

    Raises:
        ValueError: the text has one of the refused signs.

    >>> split_words("building|house,road")
    ['building|house', 'road']
    >>> split_words("building; road")
    Traceback (most recent call last):
    ValueError: the class names 'building; road' have ';': write them as "building,road"
    """
    sign = next((sign for sign in refused if sign in text.strip()), None)
    if sign:
        raise ValueError(f'the class names {text.strip()[:100]!r} have {sign!r}: write them as "building,road"')
    return text.split(",") if text.strip() else []


def check_words(words: Iterable[str]) -> None:
    """Check that words are text which a tokenizer can read.

    Raises:
        ValueError: a word is not text, or not UTF-8: a command line in another encoding gives lone surrogates.
    """
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f"the word {word!r} is not text: put it in quotes")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the word {word!a} is not UTF-8 text: write it in a UTF-8 terminal or file") from error
