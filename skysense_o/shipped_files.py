"""Find the data files that come with the code: class tables, configs, points, examples.

In a checkout these files are in the folders `configs`, `datasets` and `demo`. A wheel holds copies in the same tree
below `skysense_o/_data` (see setup.py).
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IN_WHEEL = PACKAGE / "_data"


def shipped_file(path: str) -> Path:
    """The path of one of the checkout's files or folders in this installation.

    Args:
        path: relative to the checkout, such as "configs/protocols". It need not exist.

    >>> shipped_file("datasets/classes/dubai.json").is_file()
    True
    """
    return (IN_WHEEL if IN_WHEEL.is_dir() else PACKAGE.parent) / path


def is_checkout() -> bool:
    """Whether the package runs from a checkout, rather than from an installed wheel."""
    return not IN_WHEEL.is_dir()


def find_config(path: str | Path) -> Path:
    """The file of a config: the path itself, or else a config of ours, so that configs/... works in every folder.

    Raises:
        FileNotFoundError: there is no such config.
    """
    for candidate in (Path(path), shipped_file(str(path))):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no config at {str(path)!r}: see configs/")
