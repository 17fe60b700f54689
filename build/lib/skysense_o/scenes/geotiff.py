"""Write label maps and scores as Cloud Optimized GeoTIFFs, on the grid of their source raster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from skysense_o.inference.drawing import Color
from skysense_o.scenes.label_store import SCORE_STEPS
from skysense_o.whole_files import full_disk_told, whole

TILE = 512


def write_geotiff(
    path: Path,
    source: rasterio.DatasetReader,
    dtype: np.dtype,
    nodata: int,
    bands: Iterable[range],
    read: Callable[[range], np.ndarray],
    describe: Callable[[rasterio.io.DatasetWriter], None],
) -> None:
    """Write one band with the size, CRS and transform of `source`. It gets its final name when it is complete.

    Args:
        source: open raster.
        dtype, nodata: the type of the stored values, and the value that means no data.
        bands: ranges of rows, from top to bottom.
        read: range of rows -> array (rows,W).
        describe: adds colors and tags to the open file.
    """
    staging = path.with_suffix(".staging.tif")
    side_file = Path(f"{staging}.aux.xml")
    options = {"driver": "GTiff", "dtype": dtype, "nodata": nodata, "count": 1, "tiled": True, "BIGTIFF": "IF_SAFER"}
    georeference = {"crs": source.crs, "transform": None if source.transform.is_identity else source.transform}
    try:
        size = {"width": source.width, "height": source.height}
        with (
            full_disk_told(path, staging),
            rasterio.open(staging, "w", blockxsize=TILE, blockysize=TILE, **size, **options) as file,
        ):
            for name, value in georeference.items():
                if value is not None:
                    setattr(file, name, value)
            if source.gcps[0]:
                file.gcps = source.gcps
            if source.rpcs is not None:
                file.rpcs = source.rpcs
            describe(file)
            for rows in bands:
                file.write(read(rows), 1, window=Window(0, rows.start, source.width, len(rows)))
        with whole(path) as part:
            side_file = Path(f"{part}.aux.xml")
            rasterio.shutil.copy(
                staging, part, driver="COG", COMPRESS="DEFLATE", LEVEL=6, BLOCKSIZE=TILE, BIGTIFF="IF_SAFER",
                OVERVIEW_RESAMPLING="NEAREST", NUM_THREADS="ALL_CPUS",
            )  # fmt: skip
    finally:
        for rest in (staging, side_file, Path(f"{staging}.aux.xml")):
            rest.unlink(missing_ok=True)


def describe_labels(classes: Sequence[str], colors: Sequence[Color], nodata: int, settings: dict):
    """Return a function that adds a color table and tags: CLASS_<id> for the classes, and the settings."""

    def describe(file) -> None:
        table = {i: (*color, 255) for i, color in enumerate(colors)}
        if nodata == 255:  # TIFF has color tables for 8-bit labels, not for 16-bit ones
            file.write_colormap(1, {**table, nodata: (0, 0, 0, 0)})
            file.colorinterp = [ColorInterp.palette]
        file.update_tags(**{f"CLASS_{i}": name for i, name in enumerate(classes)}, **settings)
        file.set_band_description(1, "class id")

    return describe


def describe_score(settings: dict):
    """Return a function that declares the scale: probability = stored byte x scale."""

    def describe(file) -> None:
        file.scales = (1 / SCORE_STEPS,)
        file.update_tags(MEANING=f"probability of the class: stored value / {SCORE_STEPS}", **settings)
        file.set_band_description(1, "probability of the class")

    return describe
