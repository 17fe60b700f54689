"""Tests of the Dockerfile: the files that its build gets and, if a base folder is given, its instructions."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from docker_replay import context, instructions
from test_structure import committed

BASE = os.environ.get("SKYSENSE_O_DOCKER_BASE")


def test_the_build_gets_what_the_wheel_needs_and_nothing_else():
    sent = set(context(ROOT))
    inside = {path.relative_to(ROOT).as_posix() for path in committed()}
    package = {name for name in inside if name.startswith(("skysense_o/", "configs/", "datasets/classes/", "demo/"))}
    assert package - sent == set()
    assert {"pyproject.toml", "setup.py", "require.txt", "tools/docker_install.sh"} <= sent
    assert not [name for name in sent if name.startswith((".git/", ".venv", "tests/", "output/")) or ".pyc" in name]


def test_an_ignored_folder_is_out_and_a_later_rule_takes_a_file_back(tmp_path):
    for name in ("a/keep.py", "a/b/keep.py", "a/b/drop.pyc", "c/drop.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text("# all, but\n*\n!a\n**/*.pyc\n")
    assert context(tmp_path) == ["a/b/keep.py", "a/keep.py"]


def test_every_instruction_is_one_that_the_replay_knows():
    names = [name for name, _ in instructions((ROOT / "Dockerfile").read_text())]
    assert names.count("FROM") == 2
    assert names[-2:] == ["ENTRYPOINT", "CMD"]
    with pytest.raises(ValueError, match="ADD is not known to this replay: ARG, CMD"):
        instructions("FROM a\nADD b c\n")


@pytest.mark.parametrize(("torch", "index"), [("cpu", "https://download.pytorch.org/whl/cpu"), ("cuda", "PyPI")])
def test_torch_that_cannot_be_fetched_names_the_index_and_for_cpu_the_other_way(tmp_path, torch, index):
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\nmkdir -p "$3/bin"; echo "echo pip \\"\\$@\\"; exit 1" > "$3/bin/python"; chmod +x "$3/bin/python"\n'
    )
    python.chmod(0o755)
    path = f"{python.parent}:{os.environ['PATH']}"
    words = ["sh", "tools/docker_install.sh", ROOT, tmp_path / "new", torch]
    done = subprocess.run(words, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 1
    assert ("--index-url https://download.pytorch.org/whl/cpu torch==" in done.stdout) == (torch == "cpu")
    assert f"error: torch was not installed from {index}: pip says above why" in done.stderr
    assert ("build with --build-arg TORCH=cuda" in done.stderr) == (torch == "cpu")


@pytest.mark.slow
@pytest.mark.skipif(
    not BASE,
    reason="opt-in, as root, 15 GB: SKYSENSE_O_DOCKER_BASE and _OPTIONS, see helpers/docker_replay.py",
)
def test_the_image_is_built_and_its_page_is_healthy(tmp_path):
    words = [sys.executable, ROOT / "tests/helpers/docker_replay.py", BASE, tmp_path / "image"]
    words += shlex.split(os.environ.get("SKYSENSE_O_DOCKER_OPTIONS", ""))
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert "healthy" in done.stdout
    assert "segmented as user" in done.stdout
