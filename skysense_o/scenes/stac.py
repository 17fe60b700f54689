"""SpatioTemporal Asset Catalog (STAC 1.1): read the image of an item, write an item for the results of a scene."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from skysense_o.errors import install_extra
from skysense_o.text_files import read_json_file
from skysense_o.whole_files import write_json

if TYPE_CHECKING:
    from skysense_o.scenes.raster import Raster

IMAGE_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "image/png", "image/jpeg")
MEDIA_TYPES = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".gpkg": "application/geopackage+sqlite3",
    ".geojson": "application/geo+json",
    ".json": "application/json",
    ".csv": "text/csv",
    ".png": "image/png",
}
CLASSES = "skysense_o:classes"
"""The property of an item in which a result lists its classes."""
EDGE_POINTS = 16
"""Points per edge of the footprint: a straight edge of a projected raster is curved in longitudes and latitudes."""
TIFF_TIME = "%Y:%m:%d %H:%M:%S"


def item_image(path: Path, key: str | None = None) -> Path:
    """The image file of a STAC item. Needs no STAC package.

    Args:
        path: the JSON file of the item.
        key: key of the asset; None for the only asset that is an image and not a thumbnail or overview.

    Raises:
        ValueError: the file is not a STAC item; the item has the results of a scene; it has no such asset, or several
            images; or the asset is not a local file.
        FileNotFoundError: the file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no STAC item at {str(path)!r}")
    item = read_json_file(path)
    if not isinstance(item, dict) or item.get("type") != "Feature" or "stac_version" not in item:
        raise ValueError(f"{path} is not a STAC item: give images, or a Feature with stac_version and assets")
    if not key and CLASSES in (item.get("properties") or {}):
        links = {link.get("rel"): link.get("href") for link in item.get("links") or () if isinstance(link, dict)}
        source = links.get("derived_from") or links.get("via")
        if source and not urlparse(source).scheme:
            source = os.path.normpath(path.parent / source)
        raise ValueError(f"{path} has the results of a scene, not its image: give {source or 'the image'} instead")
    assets = {name: asset for name, asset in (item.get("assets") or {}).items() if isinstance(asset, dict)}
    images = [name for name, asset in assets.items() if _is_image(asset)]
    data = [name for name in images if "data" in (assets[name].get("roles") or ())]
    found = [key] if key else data if len(data) == 1 else images
    if key and key not in assets:
        raise ValueError(f"{path} has no asset {key!r}; its assets are {', '.join(assets) or 'none'}")
    if len(found) != 1:
        listed = ", ".join(images or assets) or "none"
        raise ValueError(f"{path} has {len(images)} assets that are images: choose one with --asset KEY: {listed}")
    return _local(path, str(assets[found[0]].get("href", "")))


def _is_image(asset: dict) -> bool:
    roles = asset.get("roles") or ()
    return str(asset.get("type", "")).startswith(IMAGE_TYPES) and not {"thumbnail", "overview"} & set(roles)


def _local(item: Path, href: str) -> Path:
    """The path that an asset's href means.

    Raises:
        ValueError: the href is an address on a network.
    """
    address = urlparse(href)
    if address.scheme == "file":
        return Path(unquote(address.path))
    if len(address.scheme) > 1:  # a single letter is a drive of Windows
        raise ValueError(f"{item}: {href} is not a local file: download it, and give its path as the asset's href")
    return item.parent / href


def check_stac() -> None:
    """Check that the packages for writing STAC items are installed.

    Raises:
        ModuleNotFoundError: pystac or jsonschema is not installed.
    """
    try:
        import jsonschema  # noqa: F401
        import pystac  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"--save stac needs {error.name}, which is not installed: {install_extra('geo')}", name=error.name
        ) from error


def write_item(
    path: Path, raster: Raster, files: dict[str, Path], classes: Sequence[dict], source_item: Path | None = None
) -> None:
    """Write and validate an item whose assets are the files of a scene's result.

    Args:
        path: path of the item; the assets are given relative to its folder.
        raster: the scene.
        files: key of each asset -> its file.
        classes: rows of `class_areas`.
        source_item: the item that the scene was given by; its time is kept, and the item is linked. If there is none,
            the scene's file is linked.

    Raises:
        ValueError: the footprint cannot be converted to longitude and latitude, or the item is not valid STAC.
    """
    import pystac

    geometry, bbox = _footprint(raster)
    time, origin = _time(raster, source_item)
    properties = {"gsd": raster.areas.gsd, CLASSES: list(classes), "skysense_o:datetime_from": origin}
    item = pystac.Item(path.stem, geometry, bbox, time, properties)
    for key, file in files.items():
        media = MEDIA_TYPES.get(file.suffix)
        roles = ["overview" if file.suffix == ".png" else "metadata" if file.suffix in (".json", ".csv") else "data"]
        item.add_asset(key, pystac.Asset(f"./{file.name}", media_type=media, roles=roles))
    if source_item:
        rel, source, media = "derived_from", source_item, "application/geo+json"
    else:  # "derived_from" is for items only; IANA's "via" is the source of what a document tells
        rel, source, media = "via", raster.path, mimetypes.guess_type(raster.path)[0]
    item.add_link(pystac.Link(rel, os.path.relpath(source, path.parent), media))
    try:
        item.validate()
    except pystac.STACValidationError as error:
        raise ValueError(f"{path}: the item is not valid STAC: {error}") from error
    write_json(path, item.to_dict(include_self_link=False))


def _footprint(raster: Raster) -> tuple[dict, list[float]]:
    """The outline of a raster in longitude and latitude, and its box (west, south, east, north).

    At the antimeridian the outline is cut, and west is greater than east, as RFC 7946 requires.
    """
    import numpy as np
    import shapely

    from skysense_o.scenes.geojson import LEAST_DECIMALS, to_longitudes

    height, width = raster.size
    edge = shapely.segmentize(shapely.box(0, 0, width, height), max(height, width) / EDGE_POINTS)
    outline = shapely.transform(edge, lambda xy: np.stack(raster.file.transform @ (xy[:, 0], xy[:, 1]), axis=1))
    (shape,) = to_longitudes(np.array([outline], object), raster.file.crs, LEAST_DECIMALS)
    west, south, east, north = shape.bounds
    if shape.geom_type == "MultiPolygon" and east - west > 180:
        west = min(part.bounds[0] for part in shape.geoms if part.bounds[0] >= 0)
        east = max(part.bounds[2] for part in shape.geoms if part.bounds[0] < 0)
    return shapely.geometry.mapping(shapely.orient_polygons(shape)), [west, south, east, north]


def _time(raster: Raster, source_item: Path | None) -> tuple[datetime, str]:
    """When the image was taken, or the best estimate of it, and the source of this time."""
    if source_item:
        properties = read_json_file(source_item).get("properties") or {}
        stated = properties.get("datetime") or properties.get("start_datetime")
        if stated:
            from pystac.utils import str_to_datetime

            return str_to_datetime(str(stated)), "the source item"
    stated = raster.file.tags().get("TIFFTAG_DATETIME", "")
    try:
        return datetime.strptime(stated, TIFF_TIME).replace(tzinfo=timezone.utc), "the image's TIFFTAG_DATETIME"
    except ValueError:
        changed = int(raster.path.stat().st_mtime)
        return datetime.fromtimestamp(changed, timezone.utc), "the image file's time of change"
