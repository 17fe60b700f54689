"""The queue of the web page: a few requests run in parallel, the others wait and see their place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from skysense_o.errors import USER_ERRORS, message
from skysense_o.interactive.current_request import StoppedByUser, TimedRequest
from skysense_o.interactive.timed_work import TimedWork

BEAT = 0.25
"""Seconds between two checks whether the user is still connected."""
BUSY = "too many people are waiting here: try again in a minute"


class JobQueue:
    """Runs requests of an asyncio server in threads.

    Args:
        work: runs one request.
        jobs: number of requests that run in parallel.
        most: largest number of requests that wait.
    """

    def __init__(self, work: TimedWork, jobs: int, most: int) -> None:
        self.work, self.jobs, self.most = work, jobs, most
        self.running, self.waiting = 0, deque[object]()
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="job")

    @property
    def idle(self) -> bool:
        """Whether a further request would start at once."""
        return self.running < self.jobs and not self.waiting

    async def stream(self, callback: Callable[[], dict], gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[dict]:
        """Run a request, and report its progress.

        Args:
            callback: does the work in a thread.
            gone: whether the user has left or pressed stop; the request then ends.

        Yields:
            {"place": 1.., "waiting": n} while it waits, {"progress": 0..1 or None} while it runs, and at the end
            {"result": ...}, {"stopped": True} or {"error": text}.
        """
        if len(self.waiting) >= self.most:
            yield {"error": BUSY}
            return
        ticket, told = object(), None
        self.waiting.append(ticket)
        try:
            while self.waiting[0] is not ticket or self.running >= self.jobs:
                place = {"place": self.waiting.index(ticket) + 1, "waiting": len(self.waiting)}
                if place != told:
                    told = place
                    yield place
                await asyncio.sleep(BEAT / 5)
                if await gone():
                    return
        finally:
            self.waiting.remove(ticket)
        async with contextlib.aclosing(self._run(callback, gone)) as messages:
            async for line in messages:
                yield line

    async def run_if_idle(self, callback: Callable[[], dict | None]) -> dict | None:
        """The result of a request that must not wait in the queue; None if the server is busy or the request fails."""
        if not self.idle:
            return None
        last = None
        async with contextlib.aclosing(self._run(callback, _never)) as messages:
            async for line in messages:
                last = line
        return last.get("result")

    async def _run(self, callback: Callable[[], dict], gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[dict]:
        loop, shares = asyncio.get_running_loop(), asyncio.Queue()
        request = TimedRequest(lambda share: loop.call_soon_threadsafe(shares.put_nowait, share))
        self.running += 1
        job = loop.run_in_executor(self._threads, lambda: self.work(callback, request=request))
        job.add_done_callback(self._ended)
        try:
            yield {"progress": None}
            while not job.done():
                waiting = asyncio.ensure_future(shares.get())
                await asyncio.wait([job, waiting], timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    yield {"progress": waiting.result()}
                else:
                    waiting.cancel()
                    if await gone():
                        return
            yield self._answer(job)
        finally:
            if not request.stop.done():
                request.stop.set_result(None)

    def _ended(self, job: asyncio.Future) -> None:
        self.running -= 1
        if not job.cancelled():
            job.exception()  # without this call, asyncio would log the error again

    def _answer(self, job: asyncio.Future) -> dict:
        """The answer to send. User errors are sent as they are; others go to the log, and a general text is sent."""
        try:
            return {"result": job.result()}
        except StoppedByUser:
            return {"stopped": True}
        except USER_ERRORS as error:
            return {"error": message(error)}
        except Exception:
            logging.exception("a request of the page failed")
            return {"error": "That went wrong here; the server's log says why."}


async def _never() -> bool:
    return False
