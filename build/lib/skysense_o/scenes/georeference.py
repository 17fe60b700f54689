"""Import the code for scenes, which needs GDAL, only where a scene is read."""

from __future__ import annotations

import importlib
from types import ModuleType

from skysense_o.errors import install_extra


def scene_tools(name: str = "run") -> ModuleType:
    """Import a module of this folder.

    Raises:
        ModuleNotFoundError: the extra "geo" is not installed; the message says how to install it.

    >>> scene_tools("check").check_scene.__name__
    'check_scene'
    """
    try:
        return importlib.import_module(f"skysense_o.scenes.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("skysense_o"):
            raise
        raise ModuleNotFoundError(
            f"georeferenced scenes need {error.name}, which is not installed: {install_extra('geo')}", name=error.name
        ) from error
