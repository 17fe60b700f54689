"""Tests of tools/page_figures.py, which takes the screenshots of the web page for docs/."""

from __future__ import annotations

import shutil

import pytest
from conftest import load_script
from PIL import Image

tool = load_script("tools/page_figures.py")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_is_shown_wide_and_on_a_phone_with_masks(tmp_path, monkeypatch):
    pytest.importorskip("playwright.sync_api", reason='pip install -e ".[test]"')
    pytest.importorskip("fastapi", reason='pip install -e ".[app]"')
    monkeypatch.setattr("sys.argv", ["page_figures.py", "--output", str(tmp_path), "--port", "7869"])
    assert tool.run() == 0
    for name, width, height, _, _ in tool.VISITS:
        image = Image.open(tmp_path / name)
        assert image.size == (width, height), name
        pink = [p for p in image.convert("RGB").getdata() if p[0] > 180 and p[1] < 180 and p[2] > 150]
        assert ("map" in name) or len(pink) > 1000, f"{name}: the mask of the road is not shown"


def test_without_chromium_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("sys.argv", ["page_figures.py"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="chromium is not installed: apt-get install"):
        tool.run()
