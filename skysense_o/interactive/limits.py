"""Limits on what one person may use of the web page's server. docs/security.md lists the option for each limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the web page. Each number is the largest one that is permitted.

    Args:
        sessions: images in memory, of all people together.
        images: images that one person may have open; if there are more, the oldest is closed.
        session_bytes: memory of all sessions; the session that was idle longest is dropped first.
        pixels: pixels of an image; a larger image is scaled down to this many pixels.
        read_pixels: pixels of an image file; an image with more pixels is refused.
        words: words per request, synonyms and background included.
        word_length: characters per word.
        seconds: time per request.
        jobs: requests that run in parallel.
        queue: requests that wait.
        upload_bytes: size of one uploaded file.
        request_bytes: size of any other request.
        folder_bytes: disk space of all uploads and results; once it is used up, uploads are refused.
    """

    sessions: int = 64
    images: int = 8
    session_bytes: int = 1 << 30
    pixels: int = 4_000_000
    read_pixels: int = 50_000_000
    words: int = 64
    word_length: int = 100
    seconds: float = 60
    jobs: int = 2
    queue: int = 32
    upload_bytes: int = 64 << 20
    request_bytes: int = 1 << 20
    folder_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} {value} is out of range: it must be above 0")

    def check_words(self, entries: Sequence[str]) -> None:
        """Check the words of a request.

        Args:
            entries: words; synonyms are separated by bars.

        Raises:
            ValueError: there are too many words, a word is too long, or a word has characters that are not valid
                Unicode.
        """
        words = [word.strip() for entry in entries for word in entry.split("|")]
        if len(words) > self.words:
            raise ValueError(f"{len(words)} words were given, and {self.words} are allowed here: leave some out")
        for word in words:
            if len(word) > self.word_length:
                raise ValueError(
                    f"the word {word[:20]!r}... has {len(word)} characters; {self.word_length} are allowed here"
                )
            try:
                word.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"the word {word!r} has characters that are not valid Unicode: type it again"
                ) from error


def parse_size(text: str) -> int:
    """Bytes from a size such as "64mb".

    Raises:
        ValueError: the text is not a whole number followed by b, kb, mb or gb.

    >>> parse_size("64mb") == 64 * 2**20
    True
    """
    units = {"kb": 10, "mb": 20, "gb": 30, "b": 0}
    lower = text.strip().lower()
    for unit, shift in units.items():
        number = lower.removesuffix(unit)
        if number != lower and number.strip().isdecimal():
            return int(number) << shift
    raise ValueError(f"size {text!r} is not understood: write a whole number and b, kb, mb or gb, such as 64mb")
