"""What pyproject.toml cannot say: a wheel also holds the files of the checkout that are no code (shipped_files.py)."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = {  # folder -> patterns of the files that are copied into the wheel
    ".": ("require-detectron2.txt", "require-nodeps.txt"),
    "tools": ("visualize_data.py",),
    "configs": ("**/*.yaml",),
    "datasets": ("classes/*", "points/*", "shapes/*", "*.json", "prepare_*.py"),
    "demo": ("app.py", "*.jpg", "*.tif"),
}


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout itself is used
            return
        target = Path(self.build_lib) / "skysense_o" / "_data"
        shutil.rmtree(target, ignore_errors=True)  # build/ may hold files of an earlier version
        for folder, patterns in DATA.items():
            for path in (path for pattern in patterns for path in Path(folder).glob(pattern)):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / path)


setup(cmdclass={"build_py": BuildWithData})
