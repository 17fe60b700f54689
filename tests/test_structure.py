"""Tests of the package's structure as ARCHITECTURE.md describes it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, load_script

from skysense_o.config import default_config

# Modules in import order: each may import itself and earlier modules, except for the pairs in FORBIDDEN.
ROOMS = [
    "sample", "memory_limit", "errors", "cpu_threads", "shipped_files", "whole_files", "run_lock", "words",
    "renamed_keys", "text_files", "config", "byte_cache", "image_io", "device", "parallel", "workers", "best_class",
    "geometry", "clicks", "box_regions", "vocabulary", "kinds", "presence", "text_bank", "modeling", "training_words",
    "class_maps", "losses", "published_losses", "objective", "partial_losses", "partial_objective",
    "prompt_objective", "correction_objective", "published", "weight_paths", "sharded_files", "weight_files",
    "checkpoint", "meta_arch", "sam3", "pretraining", "vqa", "data", "inference", "scenes", "evaluation", "training",
    "interactive", "data_engine", "cli", "__main__",
]  # fmt: skip
FORBIDDEN = {("data", "meta_arch"), ("data", "modeling"), ("inference", "data"), ("geometry", "modeling")}
PACKAGE = ROOT / "skysense_o"


def imports_of(path) -> set[str]:
    """Return the modules of this package that a file imports at run time; imports for type checkers do not count."""
    found = set()
    tree = ast.parse(path.read_text())
    hidden = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "skysense_o" else [f"skysense_o.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("skysense_o.")}
    return found


def test_imports_run_one_way():
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imports_of(path) - {room}:
            assert ROOMS.index(other) < ROOMS.index(room), f"{path}: {room} must not import {other}"
            assert (room, other) not in FORBIDDEN, f"{path}: {room} must not import {other}"


def test_importing_reads_no_file_and_starts_nothing(tmp_path):
    """Importing makes no folder, reads no weights and prints nothing, and `import skysense_o` does not load torch."""
    code = (
        "import sys, skysense_o; assert 'torch' not in sys.modules;"
        "import builtins, io; real = builtins.open;\n"
        "def spy(file, *a, **k):\n"
        "    assert not str(file).endswith(('.safetensors', '.pth', '.json', '.yaml')) or 'site-packages' in str(file)"
        " or '/lib/python' in str(file), file\n"
        "    return real(file, *a, **k)\n"
        "builtins.open = io.open = spy\n"
        "import skysense_o.training.run, skysense_o.inference.export, skysense_o.data"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


YAMLS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_every_yaml_loads_and_opens_with_its_command(path):
    cfg = default_config()
    cfg.merge_from_file(str(path))
    assert yaml.safe_load(path.read_text())
    head = path.read_text().split("\nMODEL")[0]
    assert all(word in head for word in ("# Command:", "# Time:", "# Memory:", "# Expected:")), head


def leaves(node, prefix=""):
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else key
        yield from leaves(value, name) if hasattr(value, "items") else [name]


def test_every_key_we_declare_is_read():
    declared = (PACKAGE / "config.py").read_text()
    source = "\n".join(p.read_text() for p in PACKAGE.rglob("*.py") if p.name != "config.py")
    keys = [name for name in leaves(default_config()) if re.search(rf"\b{name.split('.')[-1]} = ", declared)]
    assert len(keys) > 30
    # Detectron2 itself reads its key LR_SCHEDULER_NAME; this project only sets the default.
    unread = [k for k in keys if f".{k.split('.')[-1]}" not in source and k != "SOLVER.LR_SCHEDULER_NAME"]
    assert unread == []


TEXT = (".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".json", ".cfg")


def committed():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]


def test_no_path_of_a_machine():
    # Label Studio's URLs of local files look like paths of a machine, but are none.
    pattern = re.compile(r"(?<![\w.])/(work|home/\w+|root|mnt|data(?!/local-files)|Users)/")
    bad = []
    for path in committed():
        if path.suffix in TEXT and path.name != "test_structure.py":
            bad += [f"{path}: {line}" for line in path.read_text().split("\n") if pattern.search(line)]
    assert bad == []


def test_files_are_small():
    assert [p for p in committed() if p.stat().st_size > 25 * 2**20] == []


@pytest.mark.parametrize("script", ["demo.sh", "run_train.sh", "run_eval.sh", "run_tests.sh", "tools/setup.sh"])
def test_scripts_are_plain_sh(script):
    assert subprocess.run(["sh", "-n", ROOT / script]).returncode == 0
    assert not re.search(r"\[\[|\bfunction \b|<<<|=\(", (ROOT / script).read_text()), (
        "the script uses bash syntax that dash, Debian's sh, does not know"
    )


@pytest.mark.parametrize("script", ["run_train.sh", "run_eval.sh"])
def test_a_missing_argument_gets_a_usage_line(script):
    done = subprocess.run(["sh", ROOT / script, "configs/mini/finetune.yaml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"usage: bash {script} CONFIG NUM_GPUS OUTPUT_DIR [" in done.stderr


@pytest.mark.parametrize(
    "script",
    [str(p.relative_to(ROOT)) for p in (*ROOT.glob("tools/[a-z]*.py"), ROOT / "demo/demo.py", ROOT / "demo/app.py")],
)
def test_help_teaches(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        load_script(script).parser().parse_args()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"python {script}" in shown, "the help must contain an example command"


def public_definitions() -> dict[str, list[str]]:
    """Return {name of a public class or function at the top level of modules: modules that define it}."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    return found


def test_no_two_public_things_share_a_name():
    shared = {name: modules for name, modules in public_definitions().items() if len(modules) > 1}
    assert shared == {}, "these public names are defined in several modules: give each its own name"


def test_no_module_is_long():
    lengths = {str(p.relative_to(PACKAGE)): p.read_text().count("\n") for p in PACKAGE.rglob("*.py")}
    assert {path: n for path, n in lengths.items() if n > 300} == {}


# These modules open files that this project made or that are not images; all others must use skysense_o/image_io.
OPENS = re.compile(r"\bImage\.open\(|\bcv2\.im(read|decode)\(|\brasterio\.open\(")
MAY_OPEN = {
    "data_engine/work_folder.py": "maps of the data engine",
    "scenes/geotiff.py": "results that are written",
    "scenes/instances.py": "objects of a run",
    "scenes/polygons.py": "regions of a run",
    "scenes/coco.py": "regions of a run",
    "scenes/regions.py": "regions of a run",
}


def test_there_is_one_reader_of_images():
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith("image_io/") and OPENS.search(path.read_text()):
            found.add(name)
    assert found == set(MAY_OPEN), "read users' images with skysense_o.image_io.read_image, and labels with data.labels"
    scripts = [p for folder in ("demo", "tools") for p in (ROOT / folder).glob("*.py")]
    assert [p.name for p in scripts if OPENS.search(p.read_text())] == []
