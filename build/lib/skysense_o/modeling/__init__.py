"""Towers and mask decoders: tensors in, tensors out. Importing this package fills the registries."""

from skysense_o.modeling import (  # noqa: F401
    cost_aggregation,
    mini_tower,
    open_clip_tower,
    sam_head,
    skysense_clip,
    training_free_head,
)
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
