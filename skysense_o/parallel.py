"""Windows side by side on a CPU: a core each instead of all cores for one, which wait for each other at every layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

X = TypeVar("X")
Y = TypeVar("Y")


class OrderedThreadPool:
    """A function of which several calls run at a time, each on one thread of torch's; results come in order.

    For inference only: gradients are not kept.
    """

    def __init__(self, function: Callable[[X], Y], count: int) -> None:
        """count: how many calls at a time; 1: in the caller's thread, with all of torch's threads."""
        self.function, self.count = function, count
        self.pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> OrderedThreadPool:
        if self.count > 1:
            self.threads = torch.get_num_threads()
            # What a thread sets holds for itself and for those begun later.
            self.pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *error) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)

    def __call__(self, items: Iterable[X]) -> Iterator[Y]:
        """Results in the order of the items, of which `count` are under way and one more waits for its turn, so that
        no lane stands still while the caller works on a result."""
        if self.pool is None:
            yield from map(self.function, items)
            return
        under_way: deque = deque()
        for item in items:
            under_way.append(self.pool.submit(self._call, item))
            if len(under_way) > self.count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    @torch.inference_mode()
    def _call(self, item: X) -> Y:
        return self.function(item)
