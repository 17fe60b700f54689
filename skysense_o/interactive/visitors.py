"""The people who use the web page: a random cookie each, and the images that they have open."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from skysense_o.interactive.session import Session
from skysense_o.interactive.session_store import SessionStore

IDLE_SECONDS = 3600
"""An image is closed after this time without use."""
MOST_ANSWERS = 20
"""Questions and answers that are kept per image."""


@dataclass
class OpenImage:
    """An image of a visitor, with the state that the page shows.

    Args:
        session: the image and its answers.
        key: random name in addresses.
        example: index of the example that it is, or None.
        words, background, threshold: those of the latest request.
        region_names: (class, cosine) of the region, the best first.
        summary: the result of `everything`: (class, number of regions) pairs; None if it was not requested.
        answers: (question, answer) pairs.
        scene_names: (class, cosine) of the whole image.
        version: increases with each change, so that the browser reloads maps.
    """

    session: Session
    key: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    example: int | None = None
    words: str = ""
    background: str = ""
    threshold: float = 0.0
    region_names: list[tuple[str, float]] = field(default_factory=list)
    summary: list[tuple[str, int]] | None = None
    answers: list[tuple[str, str]] = field(default_factory=list)
    scene_names: list[tuple[str, float]] = field(default_factory=list)
    version: int = 0

    def answered(self, question: str, answer: str) -> None:
        """Keep an answer; of more than MOST_ANSWERS answers, the oldest are forgotten."""
        self.answers = [*self.answers[1 - MOST_ANSWERS :], (question, answer)]


class Visitor:
    """One person. `images` are in the order in which they were opened."""

    def __init__(self) -> None:
        self.images: OrderedDict[str, OpenImage] = OrderedDict()
        self.current: str | None = None
        self.closed_for_room = 0
        self.used = time.monotonic()


class Visitors:
    """All people, bounded in number; whoever was idle longest is forgotten first.

    Args:
        sessions: the sessions of all people; it closes images when there are too many.
        images: largest number of images per person; the oldest is closed.
        most: largest number of people.
    """

    def __init__(self, sessions: SessionStore, images: int, most: int) -> None:
        self.sessions, self.images, self.most = sessions, images, most
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._visitors)

    def of(self, cookie: str | None) -> tuple[str, Visitor]:
        """The visitor of a cookie, or a new visitor and cookie. Images that the server has closed are forgotten."""
        surplus = []
        with self._lock:
            if cookie is None or cookie not in self._visitors:
                cookie = secrets.token_urlsafe(32)
                self._visitors[cookie] = Visitor()
                if len(self._visitors) > self.most:
                    without = (known for known, who in self._visitors.items() if not who.images and known != cookie)
                    surplus = self._visitors.pop(next(without, None) or next(iter(self._visitors))).images.values()
            visitor = self._visitors[cookie]
            self._visitors.move_to_end(cookie)
            visitor.used = time.monotonic()
            self._forget_closed(visitor)
        self._close(surplus)
        return cookie, visitor

    def find(self, cookie: str | None) -> Visitor | None:
        """The visitor of a cookie; None for an unknown cookie."""
        return self.of(cookie)[1] if cookie in self._visitors else None

    def add(self, visitor: Visitor, image: OpenImage) -> None:
        """Show an image; the visitor's oldest image is closed if there are too many."""
        with self._lock:
            visitor.images[image.key] = image
            visitor.current = image.key
            surplus = [visitor.images.popitem(last=False)[1] for _ in range(len(visitor.images) - self.images)]
        self._close(surplus)
        self.sessions.used(image.session)

    def close(self, visitor: Visitor, key: str) -> None:
        """Close one image of a visitor and show the previous one."""
        with self._lock:
            image = visitor.images.pop(key, None)
            if visitor.current == key:
                visitor.current = next(reversed(visitor.images), None)
        self._close([image] if image else [])

    def sweep(self, idle: float = IDLE_SECONDS) -> None:
        """Forget everyone who was idle for `idle` seconds."""
        with self._lock:
            late = [c for c, visitor in self._visitors.items() if time.monotonic() - visitor.used > idle]
            gone = [image for cookie in late for image in self._visitors.pop(cookie).images.values()]
        self._close(gone)

    def _close(self, images: Iterable[OpenImage]) -> None:
        for image in images:
            self.sessions.remove(image.session)

    def _forget_closed(self, visitor: Visitor) -> None:
        for key, image in list(visitor.images.items()):
            if image.session.closed:
                del visitor.images[key]
                visitor.closed_for_room += 1
        if visitor.current not in visitor.images:
            visitor.current = next(reversed(visitor.images), None)
