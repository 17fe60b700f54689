"""Renamed config keys and values: YAMLs and weights with the old names are still read."""

from __future__ import annotations

RENAMED_KEYS = {
    "MODEL.ANSWERER": "MODEL.VQA",
    "MODEL.PUBLISHED_QUIRKS": "MODEL.REFERENCE_COMPAT",
    "MODEL.NEW_PARAMETERS": "MODEL.ALLOW_MISSING",
    "MODEL.PASSED_OVER": "MODEL.IGNORE_UNEXPECTED",
    "MODEL.LOSS.NAME_CHUNK": "MODEL.LOSS.CLASS_CHUNK",
    "TEST.PICTURES": "TEST.IMAGES",
    "MODEL.SEM_SEG_HEAD.BOX_REGIONS": "MODEL.SEM_SEG_HEAD.CLASS_MAPS",
}
RENAMED_VALUES = {
    ("MODEL.META_ARCHITECTURE", "EmbeddedAnswerer"): "EmbeddedVQA",
    ("MODEL.META_ARCHITECTURE", "LlavaAnswerer"): "LlavaVQA",
    ("INPUT.MAPPER", "pairs"): "captions",
}


def renamed_key(key: str) -> str:
    """The current name of an old config key such as "MODEL.ANSWERER.GRID"."""
    for old, new in RENAMED_KEYS.items():
        if key == old or key.startswith(old + "."):
            return new + key[len(old) :]
    return key


def with_new_names(tree: dict, prefix: str = "") -> dict:
    """A config tree as read from YAML, with the current names of keys and values."""
    renamed = {}
    for key, value in tree.items():
        path = renamed_key(prefix + str(key))
        if isinstance(value, dict):
            value = with_new_names(value, path + ".")
        elif isinstance(value, str):
            value = RENAMED_VALUES.get((path, value), value)
        renamed[path.rpartition(".")[2]] = value
    return renamed
