"""Tests that every output is written through `whole_files`, by searching the code for writers that bypass it."""

from __future__ import annotations

import ast

import pytest
from conftest import ROOT

pytestmark = pytest.mark.faults

WRITERS = {
    "save", "savefig", "write_text", "write_bytes", "savez", "savez_compressed", "imwrite", "save_file", "copyfile",
    "copy", "write_table", "write_dataframe",
}  # fmt: skip
MODULES = ("np", "torch", "cv2", "shutil", "parquet", "pyogrio")
"""Only in these modules do functions called `copy` or `write_table` write files; methods of other objects do not."""
OURS = ("graph", "checkpointer")
"""Objects whose own `save` uses `whole`."""
TARGETS = ("part", "temporary", "stream", "data", "file", "target")
"""Names of variables that hold the temporary path from `whole`, an open file, or a buffer in memory."""
ALLOWED = {
    "data_engine/publish.py": "a folder that is renamed when it is complete",
    "data_engine/counts.py": "the same folder",
    "image_io/reading.py": "a temporary copy for GDAL",
    "inference/onnx.py": "the temporary name that its callers get from `whole`",
    "interactive/opening_process.py": "a session's own folder; the server reads it after the process has ended well",
    "interactive/routes.py": "an upload, in a temporary folder",
    "scenes/label_store.py": "the work folder of a scene; its journal says what is complete",
}


def direct_writes(text: str) -> list[str]:
    """Return the calls of writers, and of open(..., "w"), in which no argument is a variable listed in TARGETS."""
    found = []
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        function = call.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = function.value if isinstance(function, ast.Attribute) else None
        is_module = isinstance(owner, ast.Name) and owner.id in MODULES
        mode = next((a.value for a in call.args[1:2] if isinstance(a, ast.Constant)), "r")
        if name == "open" and isinstance(function, ast.Name):
            writes = "w" in str(mode)
        elif name in ("copy", "write_table", "write_dataframe"):
            writes = is_module
        elif name in ("write_text", "save") and owner is None:
            writes = False  # these are functions of this project, which use `whole_files.whole`
        elif name == "save" and getattr(owner, "attr", getattr(owner, "id", "")) in OURS:
            writes = False
        else:
            writes = name in WRITERS
        words = [owner] if name in ("write_text", "write_bytes") else [*call.args, *(k.value for k in call.keywords)]
        names = {node.id for word in words if word for node in ast.walk(word) if isinstance(node, ast.Name)}
        if writes and not names & set(TARGETS):
            found.append(f"line {call.lineno}: {ast.unparse(call)[:80]}")
    return found


def test_the_scan_finds_a_direct_write():
    assert len(direct_writes("image.save(path)\nopen(path, 'w')\npath.write_text('a')\nnp.savez(path, a=1)")) == 4
    assert not direct_writes("image.save(part)\nopen(part, 'w')\nopen(path)\nwrite_text(path, 'a')\na.copy()")


def test_no_output_is_written_under_its_final_name():
    """Regression: overlays, figures, graphs and weights used to be written in place, so a kill left half a file."""
    package, found = ROOT / "skysense_o", {}
    for path in sorted([*package.rglob("*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("demo/*.py")]):
        name = str(path.relative_to(package if path.is_relative_to(package) else ROOT))
        if lines := direct_writes(path.read_text(encoding="utf-8")):
            found[name] = lines
    assert {name: lines for name, lines in found.items() if name not in ALLOWED} == {}
    assert set(ALLOWED) <= set(found), "ALLOWED lists a file that no longer writes directly: remove it"
