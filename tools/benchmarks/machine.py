"""Facts about the machine for benchmarks: device, matrix multiplication speed, memory use."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from skysense_o.cpu_threads import cpu_quota

SIDE = {"cpu": 2048, "cuda": 8192}  # side of the matrices for `matrix_peak`, large enough to reach the peak
LONG = 20.0  # in seconds; longer calls are neither warmed up nor repeated
STATUS = Path("/proc/self/status")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable, device: torch.device, repeats: int, enough: float = LONG) -> float:
    """Return the median time per call in seconds over at most `repeats` calls; stop after `enough` seconds."""
    times = []
    while not times or (len(times) < repeats and sum(times) < enough):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak floating-point operations per second: the fastest of several square matrix products."""
    side = SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device, 1) for _ in range(6))


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def memory(device: torch.device) -> dict[str, float]:
    """Return memory in GiB: the peak since `reset_peak`, and on a CPU also the current anonymous and mapped memory."""
    if device.type == "cuda":
        return {"peak": torch.cuda.max_memory_allocated(device) / 2**30}
    if not STATUS.exists():  # these files exist on Linux only
        return {"peak": float("nan")}
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    keys = {"peak": "VmHWM", "anonymous": "RssAnon", "files": "RssFile"}
    return {name: int(lines[key].split()[0]) / 2**20 for name, key in keys.items()}


def describe(device: torch.device) -> dict:
    """Return device, CPU instructions, threads, load and versions, for the record of a benchmark."""
    cpu = next((line for line in _cpuinfo() if line.startswith("model name")), "").partition(":")[2].strip()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "cpu_quota": cpu_quota(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
