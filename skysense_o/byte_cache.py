"""A cache of arrays or tensors with a limit on their total bytes."""

from __future__ import annotations

from cachetools import LFUCache


def byte_cache(max_bytes: int) -> LFUCache:
    """A dictionary that drops the least frequently used values when it is full.

    Training reads each image once per epoch, in a new order. If half of the images fit into the cache, 41 % of the
    reads find their image there. In a cache that drops the least recently used values, 16 % would.

    Args:
        max_bytes: limit of the total size. Adding a value larger than this raises ValueError; `cachetools.cached`
            catches this error and does not cache the value.

    >>> import numpy as np
    >>> cache = byte_cache(10)
    >>> cache["a"], cache["b"] = np.zeros(4, np.uint8), (np.zeros(2, np.uint8), np.zeros(2, np.uint8))
    >>> cache.currsize
    8
    >>> cache["c"] = np.zeros(4, np.uint8)
    >>> len(cache), cache.currsize
    (2, 8)
    """
    return LFUCache(max_bytes, getsizeof=_bytes)


def _bytes(value) -> int:
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else value.nbytes
