"""A stub of the part of QGIS's Python interface that the plugin uses, so that tests of the plugin need no QGIS."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

from conftest import ROOT


class _Parameter:
    """Stub of every QgsProcessingParameter class; keeps its name and default."""

    def __init__(self, name, text="", *rest, optional=False, **other) -> None:
        self.name, self.optional, self._flags = name, optional, 0
        self.default = next((value for value in rest if isinstance(value, str | float)), None)

    def flags(self):
        return self._flags

    def setFlags(self, flags) -> None:
        self._flags = flags


class _Number(_Parameter):
    Double = 1


class _Algorithm:
    """Stub of QgsProcessingAlgorithm: a parameter's value comes from a dictionary, or is the parameter's default."""

    def __init__(self) -> None:
        self.parameters: dict[str, _Parameter] = {}

    def addParameter(self, parameter) -> None:
        self.parameters[parameter.name] = parameter

    def _value(self, values, name):
        return values.get(name, self.parameters[name].default)

    def parameterAsString(self, values, name, context) -> str:
        return self._value(values, name) or ""

    def parameterAsDouble(self, values, name, context) -> float:
        return self._value(values, name) or 0.0

    def parameterAsOutputLayer(self, values, name, context) -> str:
        return values.get(name, "")

    def parameterAsRasterLayer(self, values, name, context):
        return SimpleNamespace(source=lambda: values[name]) if name in values else None


class _Provider:
    """Stub of QgsProcessingProvider: a list of algorithms."""

    def __init__(self) -> None:
        self.algorithms: list[_Algorithm] = []

    def addAlgorithm(self, algorithm) -> None:
        algorithm.initAlgorithm()
        self.algorithms.append(algorithm)

    def refreshAlgorithms(self) -> None:
        self.algorithms.clear()
        self.loadAlgorithms()


class Registry:
    """Stub of the object returned by QgsApplication.processingRegistry()."""

    def __init__(self) -> None:
        self.providers: list[_Provider] = []

    def addProvider(self, provider) -> None:
        provider.load()
        self.providers.append(provider)

    def removeProvider(self, provider) -> None:
        provider.unload()
        self.providers.remove(provider)


class Feedback:
    """Stub of QgsProcessingFeedback: stores all messages; `cancel_when(self)` returns True once the user cancels."""

    def __init__(self, cancel_when=lambda self: False) -> None:
        self.progress, self.lines, self.commands, self.cancel_when = [], [], [], cancel_when

    def isCanceled(self) -> bool:
        return self.cancel_when(self)

    def setProgress(self, value) -> None:
        self.progress.append(value)

    def pushInfo(self, line) -> None:
        self.lines.append(line)

    def pushCommandInfo(self, line) -> None:
        self.commands.append(line)


class _PostProcessor:
    """Stub of QgsProcessingLayerPostProcessorInterface."""


class Context:
    """Stub of QgsProcessingContext: `loaded` are results that QGIS loads at the end, `styled` their post-processors."""

    def __init__(self, *loaded: str) -> None:
        self.loaded, self.styled = loaded, {}

    def willLoadLayerOnCompletion(self, layer: str) -> bool:
        return layer in self.loaded

    def layerToLoadOnCompletionDetails(self, layer: str):
        return SimpleNamespace(setPostProcessor=lambda processor: self.styled.__setitem__(layer, processor))


class ProcessingException(Exception):
    """Stub of QgsProcessingException."""


class _Settings:
    """Stub of ProcessingConfig."""

    settingIcons: dict = {}
    values: dict = {}

    @classmethod
    def addSetting(cls, setting) -> None:
        cls.values.setdefault(setting.name, setting.value)

    @classmethod
    def removeSetting(cls, name) -> None:
        cls.values.pop(name, None)

    @classmethod
    def getSetting(cls, name):
        return cls.values.get(name)

    @staticmethod
    def readSettings() -> None:
        pass


def load_plugin(monkeypatch) -> tuple[ModuleType, Registry]:
    """Import the plugin with the stub in place of QGIS; return the plugin's package and the stub's registry."""
    registry = Registry()
    core = ModuleType("qgis.core")
    names = ("RasterDestination", "RasterLayer", "String", "VectorDestination")
    for name in names:
        setattr(core, f"QgsProcessingParameter{name}", _Parameter)
    core.QgsProcessingParameterNumber = _Number
    core.QgsProcessingParameterDefinition = SimpleNamespace(FlagAdvanced=2)
    core.QgsProcessingLayerPostProcessorInterface = _PostProcessor
    core.QgsProcessing = SimpleNamespace(TypeVectorPolygon=2)
    core.QgsProcessingAlgorithm, core.QgsProcessingProvider = _Algorithm, _Provider
    core.QgsProcessingException = ProcessingException
    core.QgsApplication = SimpleNamespace(processingRegistry=lambda: registry)
    gui, config = ModuleType("qgis.PyQt.QtGui"), ModuleType("processing.core.ProcessingConfig")
    gui.QIcon = str
    _Settings.values = {}
    config.ProcessingConfig = _Settings
    config.Setting = lambda group, name, text, value: SimpleNamespace(name=name, value=value)
    modules = {"qgis": ModuleType("qgis"), "qgis.core": core, "qgis.PyQt": ModuleType("qgis.PyQt"), gui.__name__: gui}
    modules |= {name: ModuleType(name) for name in ("processing", "processing.core")} | {config.__name__: config}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    folder = ROOT / "qgis" / "skysense_o"
    spec = importlib.util.spec_from_file_location(
        "skysense_o_in_qgis", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    plugin = importlib.util.module_from_spec(spec)
    for name in [name for name in sys.modules if name.startswith(spec.name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, spec.name, plugin)
    spec.loader.exec_module(plugin)
    return plugin, registry
