"""Towers and mask decoders: tensors in, tensors out. Importing this package fills the registries."""

from skysense_o.modeling import cost_aggregation, mini_tower, open_clip_tower, sam_head, skysense_clip  # noqa: F401
from skysense_o.modeling.decoder import MaskDecoder, Queries
from skysense_o.modeling.minilm import SentenceSimilarity
from skysense_o.modeling.region_projection import RegionProjection
from skysense_o.modeling.tower import TOWER_REGISTRY, Features, Tower, build_tower

__all__ = [
    "TOWER_REGISTRY",
    "Features",
    "MaskDecoder",
    "Queries",
    "RegionProjection",
    "SentenceSimilarity",
    "Tower",
    "build_tower",
]
