"""Tests that threads wait passively, and that the CPU quota sets their number unless the user sets it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from skysense_o.cpu_threads import available_cores, cpu_quota

LIGHT = {"check_dataset.py", "compare_results.py"}  # these scripts run no model
SCRIPTS = [p for folder in ("tools", "demo") for p in sorted((ROOT / folder).glob("*.py")) if p.name not in LIGHT]
LIGHT_MODULES = {"skysense_o.cpu_threads", "skysense_o.memory_limit"}
SCRIPTS = [path for path in SCRIPTS if path.name != "__init__.py"]


def test_quota_of_version_2_is_the_least_of_the_group_and_its_parents(tmp_path):
    inner = tmp_path / "fs/outer/inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "fs/outer/cpu.max").write_text("150000 100000\n")
    (tmp_path / "groups").write_text("0::/outer/inner\n")
    assert cpu_quota(tmp_path / "fs", tmp_path / "groups") == 1.5
    (inner / "cpu.max").write_text("50000 100000\n")
    assert cpu_quota(tmp_path / "fs", tmp_path / "groups") == 0.5


def test_quota_of_version_1_and_none_at_all(tmp_path):
    folder = tmp_path / "fs/cpu/box"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("300000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "groups").write_text("3:cpuset:/\n2:cpu,cpuacct:/box\n")
    assert cpu_quota(tmp_path / "fs", tmp_path / "groups") == 3
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_quota(tmp_path / "fs", tmp_path / "groups") is None
    assert cpu_quota(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 1), (1000.0, os.cpu_count()), (None, os.cpu_count())])
def test_available_cores(monkeypatch, quota, cores):
    monkeypatch.setattr("skysense_o.cpu_threads.cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(os.cpu_count())), raising=False)
    assert available_cores() == cores


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, ("PASSIVE", "1")),
        ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}, ("ACTIVE", "7")),
        ({"GOMP_SPINCOUNT": "1000"}, (None, "1")),
    ],
)
def test_the_user_s_own_settings_stay(monkeypatch, own, expected):
    code = (
        "import os, sys; from skysense_o import cpu_threads; cpu_threads.cpu_quota = lambda: 1.0;"
        "cpu_threads.set_thread_environment(); assert 'torch' not in sys.modules;"
        "print([os.environ.get('OMP_WAIT_POLICY'), os.environ.get('OMP_NUM_THREADS')])"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = {**kept, **own, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(list(expected))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_every_script_sets_its_threads_before_it_imports_anything_large(path):
    """Scripts call set_thread_environment() before any import that loads torch, including our own."""
    before = []
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Expr) and ast.unparse(statement) == "set_thread_environment()":
            break
        if isinstance(statement, ast.ImportFrom) and statement.module.startswith("skysense_o.cli"):
            break  # importing skysense_o.cli calls set_thread_environment()
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            before.append(statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name)
    else:
        pytest.fail("set_thread_environment() is not called")
    assert {module.split(".")[0] for module in before if module not in LIGHT_MODULES} <= sys.stdlib_module_names


def test_the_folder_of_all_commands_sets_the_threads_before_it_imports_anything_large():
    lines = (ROOT / "skysense_o/cli/__init__.py").read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    light = ("cpu_threads import set_thread_environment", "memory_limit import check_memory_limit")
    assert imports == [f"from skysense_o.{line}" for line in light]
    assert any(line.startswith("set_thread_environment()") for line in lines)
