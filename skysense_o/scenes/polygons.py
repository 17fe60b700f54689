"""Regions as polygons: GeoPackage with a style for QGIS, GeoJSON. Memory: the polygons of the scene, of which
`MOST_POLYGONS` bounds the number, at about 16 bytes a vertex and 1 kB a polygon.
"""

from __future__ import annotations

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

MOST_POLYGONS = 1_000_000
LAST_CHANGE = "2000-01-01T00:00:00.000Z"
"""Stands in every GeoPackage, so that the same polygons give the same bytes."""


def polygons(
    regions: Regions,
    classes: Sequence[str],
    transform: Affine,
    crs,
    source: str,
    simplify: float = 0.0,
    ground: bool = True,
) -> geopandas.GeoDataFrame:
    """One row a region: class_id, class_name, score_mean, area_m2, pixels, source and its polygon in the scene's CRS.

    Areas are those of the pixels; not a number without `ground`, where the place is not known. simplify: in pixels;
    borders between regions are simplified as one, so that neighbours neither overlap nor part (Visvalingam and Whyatt,
    by GEOS).

    Raises:
        ValueError: more than MOST_POLYGONS regions.
    """
    if len(regions) > MOST_POLYGONS:
        raise ValueError(
            f"{len(regions):,} regions are more than the {MOST_POLYGONS:,} that are written as polygons: leave out the"
            " small ones with --min-area"
        )
    shape = np.empty(len(regions), object)
    if len(regions):
        with rasterio.open(regions.path) as file:
            for geometry, number in shapes(rasterio.band(file, 1), connectivity=4):
                if number:
                    shape[int(number) - 1] = shapely.geometry.shape(geometry)
    if simplify and len(regions):
        # GDAL leaves out corners on straight sides where two neighbours meet; GEOS needs them to see what is shared.
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
    """A GeoPackage in the scene's CRS, which QGIS opens in the colours of the classes."""
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": LAST_CHANGE})
    try:
        with whole(path) as part, plain_name(part) as target:
            pyogrio.write_dataframe(table, target, layer=LAYER, driver="GPKG", geometry_type="Polygon")
            style = {
                "f_table_catalog": "", "f_table_schema": "", "f_table_name": LAYER, "f_geometry_column": "geom",
                "styleName": "classes", "styleQML": qgis_style(classes, colors), "styleSLD": "", "useAsDefault": True,
                "description": "one colour a class", "owner": "", "ui": "",
            }  # fmt: skip
            pyogrio.write_dataframe(pandas.DataFrame([style]), target, layer="layer_styles", driver="GPKG", append=True)
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def qgis_style(classes: Sequence[str], colors: Sequence[Color]) -> str:
    """QML of a fill by class id."""
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
