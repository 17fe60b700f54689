"""The Processing provider, with a setting for the command line of SkySense-O."""

from __future__ import annotations

import os
from pathlib import Path

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithm import SegmentByWords
from .command import DEFAULT_COMMAND

SETTING = "SKYSENSE_O_COMMAND"
"""Name of the setting, and of the environment variable that overrides it."""


def command_line() -> str:
    """The command line of SkySense-O, from the environment variable or, if it is not set, from the settings of QGIS."""
    return os.environ.get(SETTING) or ProcessingConfig.getSetting(SETTING) or DEFAULT_COMMAND


class SkySenseProvider(QgsProcessingProvider):
    """The algorithms of SkySense-O in the Processing toolbox."""

    def load(self) -> bool:
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        ProcessingConfig.addSetting(Setting(self.name(), SETTING, "Command", DEFAULT_COMMAND))
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        ProcessingConfig.removeSetting(SETTING)

    def loadAlgorithms(self) -> None:
        self.addAlgorithm(SegmentByWords(command_line))

    def id(self) -> str:
        return "skysense_o"

    def name(self) -> str:
        return "SkySense-O"

    def icon(self) -> QIcon:
        return QIcon(str(Path(__file__).with_name("icon.png")))

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        return ["tif"]

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        return ["gpkg"]
