"""The QGIS plugin: a Processing provider that calls the command line of SkySense-O."""


def classFactory(iface):
    """Return the plugin; QGIS calls this function."""
    from .plugin import SkySensePlugin

    return SkySensePlugin()
