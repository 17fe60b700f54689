"""Tests that the notebook runs from top to bottom and shows its results."""

from __future__ import annotations

import os

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason='pip install -e ".[test]"')
nbclient = pytest.importorskip("nbclient", reason='pip install -e ".[test]"')


def test_no_outputs_are_stored():
    cells = nbformat.read(ROOT / "demo/quickstart.ipynb", 4).cells
    assert not [cell for cell in cells if cell.get("outputs")]


@pytest.mark.slow
def test_it_runs_top_to_bottom(tmp_path):
    notebook = nbformat.read(ROOT / "demo/quickstart.ipynb", 4)
    nbformat.validate(notebook)
    # Use this interpreter's kernel, whatever kernel is installed elsewhere as "python3".
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "demo")}})
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(tmp_path)})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [o for o in outputs if o.output_type == "error"] == []
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert any("vegetation" in o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "area_m2" in str(notebook.cells[-2].outputs), "the notebook must show the areas of the scene's polygons"
