"""Words that people write: what a tokenizer can read."""

from __future__ import annotations

from collections.abc import Iterable


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
