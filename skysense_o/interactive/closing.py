"""Sessions that may be closed while requests use them: memory and files stay until the last request has ended."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager


class ClosedSession(ValueError):
    """The error of a request to a session that was closed."""


class Closable(ABC):
    """A session that is closed at once, and freed when nobody uses it any more.

    Attributes:
        closed: True once no further request can begin to use the session.
    """

    def __init__(self) -> None:
        self.closed = False
        self._users, self._door = 0, threading.Lock()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the session's memory and files in this context, even if the session is closed meanwhile.

        Raises:
            ClosedSession: the session is closed already.
        """
        with self._door:
            if self.closed:
                raise ClosedSession("this image is closed: open it again")
            self._users += 1
        try:
            yield
        finally:
            with self._door:
                self._users -= 1
                last = self.closed and self._users == 0
            if last:
                self._free()

    def close(self) -> None:
        """Close the session to new requests; once no request uses it, delete its folder and free its memory.

        Closing twice is allowed.
        """
        with self._door:
            again, self.closed = self.closed, True
            unused = self._users == 0
        if unused and not again:
            self._free()

    @abstractmethod
    def _free(self) -> None:
        """Delete the files and free the memory of the session."""
