"""Tests that commands with too little memory print one line that says how much they need, and no traceback."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from skysense_o.errors import exit_code, file_error
from skysense_o.memory_limit import NEEDED, check_memory_limit

pytestmark = pytest.mark.faults

LINE = r"error: the address space is limited to 1.0 GB (ulimit -v 976562), and at least 4.3 GB are needed"


@pytest.mark.parametrize("script", ["demo/demo.py", "demo/app.py", "tools/train_net.py", "tools/convert_checkpoint.py"])
def test_a_command_says_how_much_it_needs(script, tmp_path):
    """Regression: commands used to fail with "libtorch_cpu.so: failed to map segment from shared object"."""
    words = {"demo/demo.py": ["--input", "demo/fields_30m.jpg", "--classes", "road", "--output", tmp_path]}.get(
        script, []
    )
    done = subprocess.run(
        [sys.executable, ROOT / script, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)),
    )
    assert done.returncode == 2
    assert done.stderr.startswith(LINE)
    assert done.stderr.count("\n") == 1


def test_no_limit_and_a_high_one_are_fine(monkeypatch):
    for limit in (resource.RLIM_INFINITY, NEEDED):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        check_memory_limit()


def test_memory_that_is_used_up_later_is_one_line(capsys, monkeypatch):
    monkeypatch.delenv("SKYSENSE_O_TRACEBACK")
    assert exit_code(lambda: torch.empty(2**50)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is not enough memory (")
    assert "at least 4.3 GB of address space (ulimit -v)" in line
    assert "not enough memory" in file_error(MemoryError(), "a.png")
    with pytest.raises(RuntimeError, match="another"):
        exit_code(lambda: (_ for _ in ()).throw(RuntimeError("another")))


HEAPS = """
import ctypes, threading
from skysense_o.memory_limit import share_one_heap
libc = ctypes.CDLL(None)
{call}
libc.malloc.restype, libc.malloc.argtypes, barrier = ctypes.c_void_p, [ctypes.c_size_t], threading.Barrier(4)
def allocate():
    barrier.wait()
    [libc.malloc(1000) for _ in range(1000)]
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="needs glibc")
def test_the_threads_of_a_scene_share_one_heap():
    """Regression: a scene of 6,000 x 12,288 pixels took 210 MB more: each thread's heap kept what was freed in it."""
    heaps = []
    for call in ("", "assert share_one_heap()"):
        code = HEAPS.format(call=call)
        heaps.append(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout)
    assert heaps[0].count("<heap nr=") > 1
    assert heaps[1].count("<heap nr=") == 1
