"""All sessions of the web page, bounded in number and memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

from skysense_o.interactive.session import Session


class SessionStore:
    """Keeps track of open sessions and closes the session that was idle longest when there are too many.

    Args:
        most: largest number of sessions.
        most_bytes: largest memory of all sessions together, in bytes.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self._sessions: OrderedDict[int, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def nbytes(self) -> int:
        """Memory of all sessions in bytes."""
        return sum(session.nbytes for session in list(self._sessions.values()))

    def used(self, session: Session) -> None:
        """Note that a session was used just now, add it if it is new, and close others until the limits hold.

        A session that a request is using is not closed.
        """
        with self._lock:
            self._sessions[id(session)] = session
            self._sessions.move_to_end(id(session))
            for key, other in list(self._sessions.items()):
                if other.closed:
                    del self._sessions[key]
                elif other is session or (len(self) <= self.most and self.nbytes <= self.most_bytes):
                    continue
                elif other.lock.acquire(blocking=False):
                    try:
                        other.close()
                    finally:
                        other.lock.release()
                    del self._sessions[key]

    def remove(self, session: Session | None) -> None:
        """Close a session; nothing happens for None or a closed session."""
        if session is not None:
            with self._lock:
                self._sessions.pop(id(session), None)
            session.close()
