"""Write regions as polygons: a GeoPackage with a style for QGIS, or GeoJSON.

All polygons of a scene are in memory: about 1 kB per polygon and 16 bytes per vertex. MAX_POLYGONS limits their number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import geopandas
import numpy as np
import pandas
import pyogrio
import rasterio
import shapely
from rasterio.features import shapes
from rasterio.transform import Affine

from skysense_o.inference.drawing import Color
from skysense_o.scenes.geojson import LAYER, plain_name
from skysense_o.scenes.regions import Regions
from skysense_o.whole_files import whole

MAX_POLYGONS = 1_000_000
warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)  # plain images have no CRS
LAST_CHANGE = "2000-01-01T00:00:00.000Z"
"""Date written into every GeoPackage, so that the same polygons give the same bytes."""


def polygons(
    regions: Regions,
    classes: Sequence[str],
    transform: Affine,
    crs,
    source: str,
    simplify: float = 0.0,
    ground: bool = True,
) -> geopandas.GeoDataFrame:
    """Convert regions to polygons.

    Args:
        classes: class per id.
        transform, crs: the scene's transform and CRS (rasterio's, or None).
        source: file name of the scene.
        simplify: tolerance in pixels (Visvalingam and Whyatt, by GEOS); 0 keeps all corners. A border that two regions
            share is simplified once, so neighbours neither overlap nor leave a gap.
        ground: whether the location on the ground is known.

    Returns:
        One row per region: class_id, class_name, score_mean, area_m2, pixels, source, and the polygon in the CRS of the
        scene. area_m2 is the area of the region's pixels, NaN if `ground` is False.

    Raises:
        ValueError: there are more than MAX_POLYGONS regions.
    """
    if len(regions) > MAX_POLYGONS:
        raise ValueError(
            f"{len(regions):,} regions are more than the {MAX_POLYGONS:,} that can be written as polygons: leave out"
            " small regions with --min-area"
        )
    parts: list[list] = [[] for _ in range(len(regions))]
    if len(regions):
        with rasterio.open(regions.path) as file:
            for geometry, number in shapes(rasterio.band(file, 1), connectivity=4):
                if number:
                    parts[int(number) - 1].append(shapely.geometry.shape(geometry))
    shape = np.empty(len(regions), object)
    for i, pieces in enumerate(parts):  # an instance may have several pieces, a region has one
        shape[i] = pieces[0] if len(pieces) == 1 else shapely.MultiPolygon(pieces)
    if simplify and len(regions):
        # GDAL omits the vertices on a straight side where two neighbours meet. GEOS needs them to find shared borders.
        shape = shapely.coverage_simplify(shapely.segmentize(shape, 1.0), simplify)
    shape = shapely.transform(shape, lambda xy: np.stack(transform @ (xy[:, 0], xy[:, 1]), axis=1))
    columns = {
        "class_id": regions.label.astype(np.int32),
        "class_name": pandas.Series([classes[i] for i in regions.label], dtype="object"),
        "score_mean": regions.score.astype(np.float64),
        "area_m2": regions.area.astype(np.float64) if crs and ground else np.full(len(regions), np.nan),
        "pixels": regions.pixels.astype(np.int64),
        "source": pandas.Series([source] * len(regions), dtype="object"),
    }
    return geopandas.GeoDataFrame(columns, geometry=list(shape), crs=crs.to_wkt() if crs else None)


def write_geopackage(
    table: geopandas.GeoDataFrame, path: Path, classes: Sequence[str], colors: Sequence[Color]
) -> None:
    """Write a GeoPackage in the CRS of the scene, with a style that QGIS applies when it opens the file.

    Args:
        table: see `polygons`.
        classes, colors: class and RGB per id.
    """
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": LAST_CHANGE})
    try:
        with whole(path) as part, plain_name(part, ".gpkg") as target:
            pyogrio.write_dataframe(table, target, layer=LAYER, driver="GPKG", **_geometry_type(table))
            style = {
                "f_table_catalog": "", "f_table_schema": "", "f_table_name": LAYER, "f_geometry_column": "geom",
                "styleName": "classes", "styleQML": qgis_style(classes, colors), "styleSLD": "", "useAsDefault": True,
                "description": "one color per class", "owner": "", "ui": "",
                "update_time": LAST_CHANGE,  # without this column, QGIS ignores the table of styles
            }  # fmt: skip
            pyogrio.write_dataframe(pandas.DataFrame([style]), target, layer="layer_styles", driver="GPKG", append=True)
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def _geometry_type(table: geopandas.GeoDataFrame) -> dict:
    several = (table.geom_type == "MultiPolygon").any()
    return {"geometry_type": "MultiPolygon" if several else "Polygon", "promote_to_multi": bool(several)}


def qgis_style(classes: Sequence[str], colors: Sequence[Color]) -> str:
    """QGIS style (QML) that fills each polygon with the color of its class."""
    categories = "".join(
        f'<category symbol="{i}" value="{i}" label={quoteattr(name)} render="true"/>' for i, name in enumerate(classes)
    )
    symbols = "".join(
        f'<symbol type="fill" name="{i}" alpha="0.6"><layer class="SimpleFill" enabled="1"><Option type="Map">'
        f'<Option type="QString" name="color" value="{r},{g},{b},255"/>'
        f'<Option type="QString" name="outline_color" value="{r},{g},{b},255"/>'
        '<Option type="QString" name="outline_width" value="0.2"/></Option></layer></symbol>'
        for i, (r, g, b) in enumerate(colors)
    )
    return (
        '<!DOCTYPE qgis PUBLIC "http://mrcc.com/qgis.dtd" "SYSTEM"><qgis version="3.22" styleCategories="Symbology">'
        f'<renderer-v2 type="categorizedSymbol" attr="class_id"><categories>{categories}</categories>'
        f"<symbols>{symbols}</symbols></renderer-v2></qgis>"
    )
