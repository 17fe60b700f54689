"""Run windows in parallel on a CPU, each in one thread.

This is faster than one window at a time on all cores, because cores that share a window synchronise after every layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

X = TypeVar("X")
Y = TypeVar("Y")


class OrderedThreadPool:
    """Calls a function on several items in parallel, each with one torch thread, and yields the results in order.

    For inference only: no gradients are kept.

    >>> with OrderedThreadPool(lambda x: x * x, count=2) as pool:
    ...     list(pool(range(4)))
    [0, 1, 4, 9]
    """

    def __init__(self, function: Callable[[X], Y], count: int) -> None:
        """
        Args:
            function: called once per item.
            count: number of parallel calls; with 1, calls run in the caller's thread, with all of torch's threads.
        """
        self.function, self.count = function, count
        self.pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> OrderedThreadPool:
        if self.count > 1:
            self.threads = torch.get_num_threads()
            # torch.set_num_threads applies to the calling thread, and new threads inherit the latest value.
            self.pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *error) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)

    def __call__(self, items: Iterable[X]) -> Iterator[Y]:
        """Yield the results in the order of the items.

        At most `count` + 1 items are submitted at a time, so no thread is idle while the caller uses a result.
        """
        if self.pool is None:
            yield from map(self.function, items)
            return
        pending: deque = deque()
        for item in items:
            pending.append(self.pool.submit(self._call, item))
            if len(pending) > self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    @torch.inference_mode()
    def _call(self, item: X) -> Y:
        return self.function(item)
