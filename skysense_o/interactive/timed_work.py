"""Run requests with a time limit and a stop button.

Python cannot stop a thread, so work that is late or stopped ends at its next model call.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import TypeVar

import torch

from skysense_o.interactive.current_request import StoppedByUser, TimedRequest, TooLate, current

logger = logging.getLogger(__name__)
T = TypeVar("T")
MOST_LATE = 8
"""Largest number of late requests that still hold a thread; at this number new requests are refused."""


def give_memory_back() -> None:
    """Return freed memory to the system. glibc keeps freed memory per thread, and each request has its own thread."""
    with suppress(OSError, AttributeError):  # the C library is not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class TimedWork:
    """Runs each request in a thread of its own and stops waiting after a time limit.

    Args:
        seconds: time limit per request.
        jobs: number of requests in parallel, which the caller enforces. Each gets an equal share of torch's threads.
    """

    def __init__(self, seconds: float, jobs: int = 1) -> None:
        self.seconds, self.threads = seconds, max(1, torch.get_num_threads() // jobs)
        self.late, self._lock = 0, threading.Lock()

    def __call__(self, work: Callable[..., T], *args, request: TimedRequest | None = None) -> T:
        """The result of `work(*args)`.

        Args:
            request: receives the progress, and can stop the work.

        Raises:
            TooLate: there was no result in time, or too many late requests still run.
            StoppedByUser: the request was stopped. Errors of `work` are raised unchanged.
        """
        if self.late >= MOST_LATE:
            raise TooLate("the server is busy with requests that take too long: try again in some minutes")
        result: Future = Future()
        request = request or TimedRequest()

        def run() -> None:
            torch.set_num_threads(self.threads)
            request.deadline = time.monotonic() + self.seconds
            current.set(request)
            try:
                result.set_result(work(*args))
            except BaseException as error:
                result.set_exception(error)
            finally:
                give_memory_back()

        threading.Thread(target=run, daemon=True).start()
        wait([result, request.stop], self.seconds, FIRST_COMPLETED)
        if result.done():
            return result.result()
        self._count(1)
        result.add_done_callback(lambda _: self._count(-1))
        if request.stop.done():
            raise StoppedByUser("stopped")
        logger.warning("a request took longer than %g s", self.seconds)
        raise TooLate(f"this took longer than {self.seconds:g} s, the time limit: use fewer words or a smaller image")

    def _count(self, change: int) -> None:
        with self._lock:
            self.late += change
