"""The QGIS style of a label map: a colour and a name for each class. This module imports nothing from QGIS."""

from __future__ import annotations

import json
from pathlib import Path
from xml.sax.saxutils import quoteattr


def write_label_style(facts: Path, labels: Path) -> Path:
    """Write `<labels>.qml`, which QGIS applies when a user adds the label map to a project; return its path.

    Args:
        facts: JSON file beside the label map, with id, name and color of each class.
        labels: file of the label map.
    """
    classes = json.loads(facts.read_text(encoding="utf-8"))["classes"]
    style = labels.with_suffix(".qml")
    style.write_text(label_style(classes), encoding="utf-8")
    return style


def label_style(classes: list[dict]) -> str:
    """The content of the style file (QML) of a label map.

    >>> "paletteEntry" in label_style([{"id": 0, "name": "road", "color": [255, 0, 0]}])
    True
    """
    entries = "".join(
        f'<paletteEntry value="{row["id"]}" color="#{bytes(row["color"]).hex()}" alpha="255"'
        f" label={quoteattr(row['name'])}/>"
        for row in classes
    )
    return (
        '<!DOCTYPE qgis PUBLIC "http://mrcc.com/qgis.dtd" "SYSTEM"><qgis version="3.22" styleCategories="Symbology">'
        '<pipe><rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1">'
        f"<colorPalette>{entries}</colorPalette></rasterrenderer></pipe></qgis>"
    )
