"""The request that a thread works on: its deadline, its stop button and its progress.

This module does not import torch, because the process that opens an upload imports it and should start quickly.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field


class TooLate(ValueError):
    """A request took longer than its time limit."""


class StoppedByUser(ValueError):
    """The user stopped a request, or has left."""


@dataclass
class TimedRequest:
    """One request to the web page, with its time limit.

    Args:
        report: is called with the share of the work that is done, 0..1.
        stop: is completed to stop the work.
        deadline: value of `time.monotonic()` after which the request is late.
    """

    report: Callable[[float], None] = lambda share: None
    stop: Future = field(default_factory=Future)
    deadline: float = float("inf")


current: contextvars.ContextVar[TimedRequest | None] = contextvars.ContextVar("request", default=None)


def check_time() -> None:
    """Raise TooLate or StoppedByUser if the current request is late or stopped. The model calls it before each step."""
    request = current.get()
    if request is not None and request.stop.done():
        raise StoppedByUser("stopped")
    if request is not None and time.monotonic() > request.deadline:
        raise TooLate("the time limit is over")


def report_progress(share: float) -> None:
    """Report to the user of the current request which share of the work is done, 0..1."""
    request = current.get()
    if request is not None:
        request.report(share)
