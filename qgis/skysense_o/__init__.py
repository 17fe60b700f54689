"""The QGIS plugin: a Processing provider over the command line of SkySense-O."""


def classFactory(iface):
    """Return the plugin; QGIS calls this function."""
    from .plugin import SkySensePlugin

    return SkySensePlugin()
