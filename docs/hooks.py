"""Hooks of mkdocs: documents outside of docs/ become pages, links are rewritten, examples in docstrings become code."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "MODEL_ZOO.md": "project/model_zoo.md",
    "README.md": "index.md",
    "RESULTS.md": "project/results.md",
    "SECURITY.md": "project/security.md",
    "data_engine.md": "project/data_engine.md",
    "datasets/README.md": "project/datasets.md",
    "demo/README.md": "project/images.md",
    "docs/README.md": "index.md",
    "skysense_o/weights/mini.md": "project/mini.md",
    "skysense_o/weights/mini_vqa.md": "project/mini_vqa.md",
}
"""File of the repository -> page of the site."""
SOURCES = {page: source for source, page in PAGES.items() if page.startswith("project/")}
EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.M | re.S)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config) -> Files:
    """Add the documents outside of docs/."""
    for page, source in SOURCES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Rewrite the links of a page; a link to a file that is not part of the site becomes its text."""
    here = page.file.src_uri
    return rewritten(markdown, SOURCES.get(here, f"docs/{here}"), here)


def rewritten(markdown: str, source: str, page: str) -> str:
    """Rewrite the relative links of a document.

    Args:
        markdown: the document.
        source: its file, relative to the repository.
        page: its page, relative to the site.
    """

    def link(match: re.Match) -> str:
        bang, text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / file).exists():
            return match[0]  # mkdocs reports the broken link
        to = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else "")
        if not to:
            return text
        if file == "README.md":  # the first page of the site has other sections
            mark = anchor = ""
        return f"{bang}[{text}]({posixpath.relpath(to, posixpath.dirname(page) or '.')}{mark}{anchor})"

    return LINK.sub(link, markdown)


class Examples(griffe.Extension):
    """Make the examples of docstrings blocks of code, which Markdown would read as links and quotes."""

    def on_object(self, *, obj: griffe.Object, **rest) -> None:
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
