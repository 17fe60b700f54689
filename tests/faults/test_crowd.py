"""A short run of crowd.py: concurrent users get their own answers and the page ends cleanly; times are not checked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.faults

pytest.importorskip("fastapi", reason='pip install -e ".[app]"')


@pytest.mark.slow
def test_users_at_once_get_their_own_answers(tmp_path):
    script, target = ROOT / "tests/faults/crowd.py", tmp_path / "crowd.json"
    words = ["--users", "4", "--seconds", "8", "--thinking", "0.5", "--json", target]
    done = subprocess.run([sys.executable, script, *words], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads(target.read_text())
    assert figures["problems"] == []
    assert figures["open"]["requests"] >= 4
    assert figures["segment"]["requests"] >= 4
    assert figures["memory_MiB"]["after"] > 0
