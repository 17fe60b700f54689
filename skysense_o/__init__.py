"""SkySense-O: open-vocabulary segmentation of remote sensing images."""

from importlib import import_module

from skysense_o.errors import message

__version__ = "0.1.0"
__all__ = ["Predictor", "SkySenseO", "Vocabulary", "scene_label_map", "segment_scene"]

_HOME = {
    "Predictor": "inference.predictor",
    "SkySenseO": "meta_arch",
    "Vocabulary": "vocabulary",
    "scene_label_map": "scenes.api",
    "segment_scene": "scenes.api",
}


def __getattr__(name: str):
    """Import the public names on first use, so that `import skysense_o` itself is fast."""
    if name in _HOME:
        try:
            return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(message(error), name=error.name) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
