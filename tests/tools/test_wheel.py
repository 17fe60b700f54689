"""Tests that the wheel can be built, can be installed into a fresh environment, and works there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from conftest import ROOT
from test_structure import committed

import skysense_o


def command(*words, cwd, **environment) -> subprocess.CompletedProcess:
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env={**outside, **environment}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the committed files."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in committed():
        target = folder / "source" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source")
    done = command(sys.executable, *build, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_what_the_code_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = [p.relative_to(ROOT).as_posix() for p in committed()]
    assert [name for name in inside if name.startswith("skysense_o/") and name not in names] == []
    needed = ("configs/", "datasets/classes/", "datasets/points/", "datasets/shapes/", "datasets/prepare_")
    needed = (*needed, "datasets/concepts.json")
    assert [n for n in inside if n.startswith(needed) and f"skysense_o/_data/{n}" not in names] == []
    tops = {name.split("/")[0] for name in names}
    assert tops == {"skysense_o", f"skysense_o-{skysense_o.__version__}.dist-info"}, (
        "the wheel must contain no other top-level package"
    )


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """The installed wheel, not this checkout, runs in a fresh environment that shares only the dependencies."""
    venv.create(tmp_path / "env", with_pip=False)
    python, site = tmp_path / "env/bin/python", next((tmp_path / "env/lib").glob("python3*/site-packages"))
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"])
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    done = command(sys.executable, *install, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    program = tmp_path / "env/bin/skysense-o"
    assert command(program, "--version", cwd=tmp_path).stdout == f"skysense-o {skysense_o.__version__}\n"
    places = "import skysense_o, skysense_o.shipped_files as f; print(skysense_o.__file__, f.is_checkout())"
    assert command(python, "-c", places, cwd=tmp_path).stdout == f"{site}/skysense_o/__init__.py False\n"
    image = ROOT / "demo/yellowstone_0.4m.jpg"
    done = command(program, "segment", image, "--dataset", "dubai", "--save", "labels", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output/yellowstone_0.4m_labels.png").is_file()
    done = command(program, "eval", "--config-file", "configs/mini/finetune.yaml", "MODEL.WIDTH", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "MODEL.WIDTH" in done.stderr, "the error must be about the wrong key, so the config itself was found"
    assert command(program, "app", "--help", cwd=tmp_path).returncode == 0
    assert command(program, "data", "check", "--list", cwd=tmp_path).stdout.startswith("dubai")
