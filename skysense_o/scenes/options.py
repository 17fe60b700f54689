"""Options of a scene: how it is read, and which files are written. Imports neither torch nor GDAL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skysense_o.inference.colors import Color

SCENE_FORMATS = ("geotiff", "confidence", "gpkg", "geojson", "coco", "boxes", "areas", "stac")
"""Formats that only scenes have."""
FORMATS = (*SCENE_FORMATS, "labels", "overlay", "json")
"""All formats of scenes; `labels` is another word for `geotiff`."""


@dataclass(frozen=True)
class SceneOptions:
    """How a scene is read, cut into windows and labelled.

    Attributes:
        bands: three band numbers from 1, or one; None for the bands that the file declares as RGB, or the first 3.
        gsd: resample to this ground sampling distance for the model, in metres per pixel; None for the raster's.
        aoi: vector file; pixels outside its polygons get no label. None for the whole raster.
        window, overlap: in pixels; None for the defaults, see `plan_windows`.
        memory: bytes that may be used beyond the weights.
        threshold: 0..1; pixels whose best class is less probable get id 0, "none". None for no threshold, but 0.5
            for a single class.
        batch: windows per call of the model; None for 1 on a CPU, 8 on a GPU.
        remote: allow files that refer to data on a network.

    >>> SceneOptions(bands=(4, 3, 2), gsd=0.5, memory=parse_bytes("800MB")).memory
    800000000
    """

    bands: tuple[int, ...] | None = None
    gsd: float | None = None
    aoi: str | Path | None = None
    window: int | None = None
    overlap: int | None = None
    memory: int = 2 * 2**30
    threshold: float | None = None
    batch: int | None = None
    remote: bool = False


@dataclass(frozen=True)
class SceneOutputs:
    """Which files are written for a scene, and where.

    Attributes:
        folder: is created if necessary.
        formats: some of FORMATS.
        stem: the files are called `<stem>_labels.tif` and so on; None for the stem of the scene's own file.
        colors: RGB per class, without the background; None for the default colors, see `colors_for`.
        min_area: smaller regions are left out of polygons and boxes; square metres, or pixels where the location on
            the ground is unknown.
        simplify: tolerance to simplify polygons with, in pixels; 0 to keep all corners.
        item: STAC item that the scene was given by, or None; the item of --save stac refers to it.
        min_share: if above 0, classes are sorted by share, and the legend leaves out those below this share (0..1).

    Raises:
        ValueError: a format is not in FORMATS.

    >>> SceneOutputs(Path("out"), ("geotiff", "gpkg"), min_area=100.0).formats
    ('geotiff', 'gpkg')
    """

    folder: Path
    formats: Sequence[str] = ("geotiff", "areas")
    stem: str | None = None
    colors: Sequence[Color] | None = None
    min_area: float = 0.0
    simplify: float = 0.0
    min_share: float = 0.0
    item: Path | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown:
            raise ValueError(f"--save {','.join(unknown)} is not for georeferenced scenes: use {', '.join(FORMATS)}")


def parse_bytes(text: str) -> int:
    """Parse a size such as "2GiB", "800MB" or "2000000000" into bytes.

    Raises:
        ValueError: the text is not a size, or the size is below 1 MiB.

    >>> parse_bytes("2GiB"), parse_bytes("800MB")
    (2147483648, 800000000)
    """
    units = {"": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.strip().lower().rstrip("bikmg ")
    try:
        size = int(float(number) * units[text.strip().lower()[len(number) :].strip()])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 2**20:  # a number without a unit usually means GiB
        raise ValueError(f"memory {text!r} is not a size of 1 MiB or more: write it as 2GiB or 800MB")
    return size
