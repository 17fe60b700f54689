"""Run requests with a time limit. Python cannot stop a thread, so work that is late stops at its next model call."""

from __future__ import annotations

import contextvars
import ctypes
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
T = TypeVar("T")
MOST_LATE = 8
"""Late requests that may still hold a thread. New requests are refused while there are as many."""
_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


class TooLate(ValueError):
    """A request took longer than its time limit."""


def give_memory_back() -> None:
    """Give freed memory back to the system. glibc keeps it per thread, and each request has a thread of its own."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def check_time() -> None:
    """Raise TooLate if the time limit of the current request is over. The model calls it before each step."""
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() > deadline:
        raise TooLate("the time limit is over")


class TimedWork:
    """Runs each request in a thread of its own and stops waiting after a time limit.

    Args:
        seconds: time limit per request.
        jobs: requests that run in parallel; the caller keeps to it. Each gets its share of torch's threads.
    """

    def __init__(self, seconds: float, jobs: int = 1) -> None:
        self.seconds, self.threads = seconds, max(1, torch.get_num_threads() // jobs)
        self.late, self._lock = 0, threading.Lock()

    def __call__(self, work: Callable[..., T], *args) -> T:
        """The result of `work(*args)`.

        Raises:
            TooLate: no result in time, or too many late requests still run. What `work` raises is raised as it is.
        """
        if self.late >= MOST_LATE:
            raise TooLate("the server is busy with requests that take too long: try again in some minutes")
        result: Future = Future()

        def run() -> None:
            torch.set_num_threads(self.threads)
            _deadline.set(time.monotonic() + self.seconds)
            try:
                result.set_result(work(*args))
            except BaseException as error:
                result.set_exception(error)
            finally:
                give_memory_back()

        # The context holds what Gradio needs to show messages.
        threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
        wait([result], self.seconds)
        if not result.done():
            logger.warning("a request took longer than %g s", self.seconds)
            self._count(1)
            result.add_done_callback(lambda _: self._count(-1))
            raise TooLate(
                f"this took longer than {self.seconds:g} s, the time limit: use fewer words or a smaller image"
            )
        return result.result()

    def _count(self, change: int) -> None:
        with self._lock:
            self.late += change
