"""How many CPU threads to use, and how they wait.

This module must not import torch: OpenMP reads its settings when torch is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cpu_quota(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The number of CPUs that the control groups of this process allow it, as in `docker run --cpus 1.5`.

    Args:
        root: where the control groups are mounted, of version 1 or 2.
        membership: the file that names the control groups of this process.

    Returns:
        The least quota of these groups and their parents; None if no group has a quota.
    """
    groups = {"/"}
    if membership.is_file():
        for line in membership.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                groups |= {group, *(str(parent) for parent in Path(group).parents)}
    quotas = []
    for group in groups:
        folder = group.lstrip("/")
        quotas.append(_ratio(_words(root / folder / "cpu.max")))
        for mount in ("cpu", "cpu,cpuacct"):
            files = (root / mount / folder / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
            quotas.append(_ratio([word for file in files for word in _words(file)]))
    return min((quota for quota in quotas if quota is not None), default=None)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # absent, or hidden from this process
        return []


def _ratio(words: list[str]) -> float | None:
    """CPUs from the words "quota period", both in microseconds; None if the quota is "max" or -1, that is, no limit."""
    if len(words) != 2 or words[0] == "max" or int(words[0]) <= 0:
        return None
    return int(words[0]) / int(words[1])


def available_cores() -> int:
    """Number of CPUs that this process may keep busy: the lower of its affinity and its quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def set_thread_environment() -> None:
    """Set how OpenMP's threads wait, and their number, unless the user has set them. Call it before torch is imported.

    Threads that wait by spinning take the cores from threads that have work. If other programs run, or under a quota
    of CPU time, spinning makes a model ten times slower. Passive waiting costs a few percent on an idle machine.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if "OMP_NUM_THREADS" not in os.environ and cpu_quota() is not None:
        os.environ["OMP_NUM_THREADS"] = str(available_cores())
