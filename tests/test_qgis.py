"""Tests of the QGIS plugin on a stub of QGIS: the commands it runs, progress, cancelling, errors and output files."""

from __future__ import annotations

import configparser
import os
import shlex
import sys
import time
from importlib import import_module
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import qgis_stub
from conftest import ROOT

FAKE = """
import os, sys, time
from pathlib import Path
print("argv", sys.argv[1:], flush=True)
print("environment", sorted(k for k in os.environ if k.startswith(("PYTHON", "GDAL_", "QGIS_"))), flush=True)
folder = Path(sys.argv[sys.argv.index("--output") + 1])
stem = Path(sys.argv[sys.argv.index("--input") + 1]).stem
folder.mkdir(parents=True, exist_ok=True)
for done in range(0, 101, 25):
    sys.stderr.write(f"\\r{stem}.tif: {done:3d}%|####      | {done}/100 [00:00<00:00]")
    sys.stderr.flush()
if "SLEEP" in os.environ:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
if "--classes=fail" in sys.argv:
    sys.exit("error: no such weights")
(folder / f"{stem}_labels.tif").write_text("labels")
(folder / f"{stem}.gpkg").write_text("regions")
(folder / f"{stem}.json").write_text('{"classes": [{"id": 0, "name": "a & b", "color": [255, 0, 16]}]}')
"""


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """Load the plugin with the fake command FAKE, in a folder whose name contains a space."""
    package, registry = qgis_stub.load_plugin(monkeypatch)
    script = tmp_path / "a folder" / "fake.py"
    script.parent.mkdir()
    script.write_text(FAKE)
    monkeypatch.setenv("SKYSENSE_O_COMMAND", f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}")
    one = package.classFactory(None)
    one.initGui()
    assert len(registry.providers) == 1
    yield registry.providers[0]
    one.unload()
    assert registry.providers == []


def values_of(tmp_path, **changes) -> dict:
    (tmp_path / "town.tif").touch()
    names = {"LABELS": "found/labels.tif", "REGIONS": "found/regions.gpkg"}
    return {"INPUT": str(tmp_path / "town.tif"), "CLASSES": "road|street,-a", **changes} | {
        key: str(tmp_path / name) for key, name in names.items() if key not in changes
    }


def test_a_run_calls_the_command_and_moves_its_files(plugin, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/of/qgis")
    monkeypatch.setenv("GDAL_DATA", "/of/qgis")
    (algorithm,) = plugin.algorithms
    feedback = qgis_stub.Feedback()
    values = values_of(tmp_path, BACKGROUND="tree", THRESHOLD=0.4, MIN_AREA=10.0)
    found = algorithm.createInstance()
    found.initAlgorithm()
    results = found.processAlgorithm(values, qgis_stub.Context(), feedback)
    assert results == {"LABELS": values["LABELS"], "REGIONS": values["REGIONS"]}
    assert (tmp_path / "found/labels.tif").read_text() == "labels"
    assert (tmp_path / "found/regions.gpkg").read_text() == "regions"
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == ["labels.qml", "labels.tif", "regions.gpkg"]
    style = ElementTree.fromstring((tmp_path / "found/labels.qml").read_text())
    (entry,) = style.iter("paletteEntry")
    assert (entry.get("value"), entry.get("color"), entry.get("label")) == ("0", "#ff0010", "a & b")
    assert feedback.progress == [0, 25, 50, 75, 100, 100], "the last 100 must be reported when the command has ended"
    said = "\n".join(feedback.lines)
    for word in ("--classes=road|street,-a", "--save=geotiff,json,gpkg", "--background=tree", "--threshold=0.4"):
        assert word in said
    assert "--min-area=10.0" in said
    assert "--gsd" not in said
    assert "--weights" not in said
    assert "['PYTHONIOENCODING', 'PYTHONUNBUFFERED']" in said, (
        "the command must not inherit QGIS's environment variables for Python and GDAL"
    )


def test_a_label_map_that_qgis_loads_gets_the_names_of_its_classes(plugin, tmp_path):
    """Regression: QGIS showed the numbers 0 to 255 as the legend."""
    values = values_of(tmp_path, REGIONS="")
    context = qgis_stub.Context(values["LABELS"])
    plugin.algorithms[0].processAlgorithm(values, context, qgis_stub.Feedback())
    styles, layer = [], SimpleNamespace(loadNamedStyle=lambda file: styles.append(file), triggerRepaint=lambda: None)
    context.styled[values["LABELS"]].postProcessLayer(layer, context, None)
    assert styles == [str(tmp_path / "found/labels.qml")]


def test_files_of_others_in_its_folder_stay(plugin, tmp_path):
    """Regression: the plugin used to delete the whole folder of its results, including the user's files."""
    folder = tmp_path / "found/labels_skysense_o"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    plugin.algorithms[0].processAlgorithm(values_of(tmp_path), qgis_stub.Context(), qgis_stub.Feedback())
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "found/labels.tif").is_file()


def test_polygons_are_optional(plugin, tmp_path):
    feedback = qgis_stub.Feedback()
    results = plugin.algorithms[0].processAlgorithm(values_of(tmp_path, REGIONS=""), qgis_stub.Context(), feedback)
    assert list(results) == ["LABELS"]
    assert "--save=geotiff,json'" in "\n".join(feedback.lines)


def test_cancel_ends_the_command_and_keeps_its_progress(plugin, tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEP", "1")
    pid = tmp_path / "found/labels_skysense_o/pid"
    feedback = qgis_stub.Feedback(lambda self: pid.is_file() and pid.read_text() != "")
    assert plugin.algorithms[0].processAlgorithm(values_of(tmp_path), qgis_stub.Context(), feedback) == {}
    deadline = time.time() + 30
    while _alive(int(pid.read_text())) and time.time() < deadline:
        time.sleep(0.1)
    assert not _alive(int(pid.read_text()))
    assert pid.is_file(), "the folder must remain, so that the next run can resume"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_errors_are_those_of_the_command_or_say_what_to_set(plugin, tmp_path, monkeypatch):
    algorithm, feedback = plugin.algorithms[0], qgis_stub.Feedback()
    wrong = qgis_stub.ProcessingException
    with pytest.raises(wrong, match="no such weights"):
        algorithm.processAlgorithm(values_of(tmp_path, CLASSES="fail"), qgis_stub.Context(), feedback)
    with pytest.raises(wrong, match="must be a file: .*url=.*export the layer first"):
        algorithm.processAlgorithm(values_of(tmp_path, INPUT="type=xyz&url=x"), qgis_stub.Context(), feedback)
    with pytest.raises(wrong, match="no classes: name at least one"):
        algorithm.processAlgorithm(values_of(tmp_path, CLASSES=" "), qgis_stub.Context(), feedback)
    monkeypatch.setenv("SKYSENSE_O_COMMAND", "no-such-program-here scene")
    with pytest.raises(wrong, match="'no-such-program-here' cannot be started .*set the command in Settings"):
        algorithm.processAlgorithm(values_of(tmp_path), qgis_stub.Context(), feedback)


def test_the_setting_is_the_command_unless_the_environment_has_one(plugin, monkeypatch):
    provider = import_module(f"{type(plugin).__module__}")
    assert provider.command_line() == os.environ["SKYSENSE_O_COMMAND"]
    monkeypatch.delenv("SKYSENSE_O_COMMAND")
    assert provider.command_line() == "skysense-o scene"
    monkeypatch.setitem(provider.ProcessingConfig.values, provider.SETTING, "python -m skysense_o scene")
    assert provider.command_line() == "python -m skysense_o scene"


def test_the_parameters_and_the_description(plugin):
    (algorithm,) = plugin.algorithms
    assert (plugin.id(), algorithm.name()) == ("skysense_o", "segment_by_words")
    assert list(algorithm.parameters)[:3] == ["INPUT", "CLASSES", "BACKGROUND"]
    facts = configparser.ConfigParser()
    facts.read(ROOT / "qgis/skysense_o/metadata.txt")
    assert facts["general"]["hasProcessingProvider"] == "yes"
    assert (ROOT / "qgis/skysense_o" / facts["general"]["icon"]).is_file()


@pytest.mark.slow
def test_the_real_command_reports_progress_and_writes_what_qgis_loads(plugin, tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    monkeypatch.setenv("SKYSENSE_O_COMMAND", f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'demo/demo.py'))}")
    feedback = qgis_stub.Feedback()
    values = values_of(tmp_path, INPUT=str(ROOT / "demo/foz_30m.tif"), CLASSES="water,forest")
    results = plugin.algorithms[0].processAlgorithm(values, qgis_stub.Context(), feedback)
    assert feedback.progress[-1] == 100
    with rasterio.open(results["LABELS"]) as file:
        assert file.tags()["CLASS_0"] == "water"
    assert os.path.getsize(results["REGIONS"]) > 0
    assert not (tmp_path / "found/labels_skysense_o").exists(), (
        "the plugin must know and move all files that the command leaves"
    )
