"""Tests that the documentation site builds without warnings, has every document, and has no broken links."""

from __future__ import annotations

import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

pytest.importorskip("mkdocs", reason='pip install -e ".[docs]"')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; `--strict` turns warnings (missing pages, links, anchors, unknown objects) into errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_links_and_images_of_the_built_pages_exist(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    ids = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text())) for page in pages}
    wrong = []
    for page in pages:
        if page.name == "404.html":  # skip 404.html, whose links are relative to the server's root
            continue
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text()):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                wrong.append(f"{page.relative_to(site)}: {link}")
            elif parts.fragment and target in ids and not {parts.fragment, unquote(parts.fragment)} & ids[target]:
                wrong.append(f"{page.relative_to(site)}: no {link}")
    assert wrong == []


@pytest.mark.slow
def test_the_pages_ask_no_other_server(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]* (?:src|href)="(https?://[^"]+)"', page.read_text())
        assert [address for address in loaded if "canonical" not in address] == [], page


@pytest.mark.slow
def test_the_reference_shows_signatures_and_documents_outside_of_docs_are_pages(site):
    page = (site / "reference/prediction.html").read_text()
    assert 'id="skysense_o.inference.predictor.Predictor.from_pretrained"' in page
    assert "&gt;&gt;&gt;" in page, "examples in docstrings must be shown as code"
    assert "Where things are" in (site / "project/architecture.html").read_text()
    assert "Trained on" in (site / "project/mini.html").read_text()
