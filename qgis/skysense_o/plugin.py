"""The plugin object, which QGIS creates and keeps."""

from __future__ import annotations

from qgis.core import QgsApplication

from .provider import SkySenseProvider


class SkySensePlugin:
    """Registers the Processing provider while the plugin is loaded."""

    def __init__(self) -> None:
        self.provider = None

    def initProcessing(self) -> None:
        """Register the provider. If QGIS runs without a window (qgis_process), it calls only this method."""
        self.provider = SkySenseProvider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Register the provider. If QGIS runs with a window, it calls this method."""
        self.initProcessing()

    def unload(self) -> None:
        """Remove the provider."""
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None
