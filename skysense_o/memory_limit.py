"""Memory of this process: report in one line that a limit (ulimit -v) is too low, before a library fails because of it;
and keep little of what was freed.

This module imports nothing that needs much memory, so that it can run before torch is imported.
"""

from __future__ import annotations

import ctypes
import sys

NEEDED = 4_300_000_000
"""Bytes of address space. demo/demo.py on a shipped image was measured to take 4.1 GB; most of it is never touched."""

M_ARENA_MAX = -8
"""The parameter of glibc's `mallopt` that limits the number of arenas."""


def share_one_heap() -> bool:
    """Let the threads of this process allocate from one heap, and not from one per thread (glibc's arenas).

    Each arena keeps most of what was freed in it. In a scene of 6,000 x 12,288 pixels, several arenas kept 210 MB more
    than one. Arenas that exist already stay.

    Returns:
        Whether the number of arenas is limited now; False without glibc.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1))
    except (AttributeError, OSError, TypeError):  # musl or macOS have no mallopt; Windows has no CDLL(None)
        return False


def check_memory_limit(needed: int = NEEDED) -> None:
    """End the program with one line on stderr and exit code 2 if its address space is limited to less than `needed`.

    Args:
        needed: bytes.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        print(
            f"error: the address space is limited to {limit / 1e9:.1f} GB (ulimit -v {limit // 1024}), and at least"
            f" {needed / 1e9:.1f} GB are needed: ulimit -v {-(-needed // 1024)}, or ulimit -v unlimited",
            file=sys.stderr,
        )
        raise SystemExit(2)
