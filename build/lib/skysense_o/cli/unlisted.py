"""Install the packages that cannot be listed as dependencies. Imports the standard library only."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from skysense_o.shipped_files import shipped_file


def install_unlisted() -> None:
    """Install Detectron2, and the packages with weights whose declared requirements are neither needed nor wanted.

    Raises:
        OSError: pip failed; its output says why.
    """
    _pip("--no-deps", "-r", str(shipped_file("require-nodeps.txt")))
    install_detectron2()


def install_detectron2() -> None:
    """Install Detectron2 into this Python's environment, unless a working one is installed.

    Detectron2 is not on PyPI under its own name. The wheel named in require-detectron2.txt contains its main branch of
    2024-04-17. Its Python code runs on 3.10 to 3.12. Its compiled operators, built for another torch, are not needed.

    Raises:
        OSError: pip failed; its output says why.
    """
    if subprocess.run([sys.executable, "-c", "import detectron2.modeling"], capture_output=True).returncode == 0:
        return
    site = Path(sysconfig.get_paths()["purelib"])
    stray = site / "tools"  # Detectron2's wheel also contains a package "tools", which would hide this project's
    had_tools = stray.exists()
    words = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.10", "--target", str(site)]
    _pip("--no-deps", *words, "--require-hashes", "-r", str(shipped_file("require-detectron2.txt")))
    if not had_tools:
        shutil.rmtree(stray, ignore_errors=True)
    importlib.invalidate_caches()


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    if subprocess.run(command).returncode:
        raise OSError(f"{' '.join(command)} failed: see above")
