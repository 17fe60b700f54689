"""What GDAL may open: local rasters of known kinds, after a look at their first bytes. Needs the extra "geo".

A file that somebody else gave may hold an address in place of pixels (WMS, WMTS, WCS, a VRT of /vsicurl/...), and GDAL
would fetch it. So each file is opened with the one driver of its container, a VRT only if all it refers to are local
images, and GDAL's own network file systems are off, unless `remote` says otherwise.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from skysense_o.image_io.files import ImageError, container_of, is_beside, printable
from skysense_o.image_io.pillow import header_of

if TYPE_CHECKING:
    import rasterio

DRIVERS = {
    "TIFF": "GTiff", "PNG": "PNG", "JPEG": "JPEG", "JPEG2000": "JP2OpenJPEG", "GIF": "GIF", "BMP": "BMP",
    "WEBP": "WEBP", "PNM": "PNM", "HFA": "HFA", "NITF": "NITF", "VRT": "VRT", "ENVI": "ENVI", "AAIGrid": "AAIGrid",
}  # fmt: skip
"""GDAL's driver for a container. Raw values with a header beside them (ENVI) may be EHdr's as well."""
_NO_PLACE_INSIDE = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PNM")
"""Containers whose place, if any, is in a file beside them: GDAL need not be asked about most of them."""
GDAL_CACHE = 64 * 2**20
HTTP_TIMEOUT = 20
VRT_DEPTH = 4
VRT_BYTES = 16 * 2**20
WHAT_IS_LOST = 'its place on the ground is lost: pip install -e ".[geo]" keeps it'


@cache
def has_geo() -> bool:
    """Whether GDAL is there, by rasterio of the extra "geo"."""
    try:
        return importlib.util.find_spec("rasterio") is not None
    except ValueError:  # a test or a user has put None in its place
        return False


@contextmanager
def gdal_settings(remote: bool = False) -> Iterator[None]:
    """GDAL with a bounded cache (its own is 5 % of the machine's memory), a time limit, and no network by default."""
    import rasterio

    options = {"GDAL_CACHEMAX": GDAL_CACHE, "GDAL_HTTP_TIMEOUT": HTTP_TIMEOUT, "GDAL_HTTP_CONNECTTIMEOUT": HTTP_TIMEOUT}
    options["GDAL_PNG_WHOLE_IMAGE_OPTIM"] = False  # it takes a PNG that is cut short for a whole one
    if not remote:  # no file name ends in this, so none of GDAL's network file systems opens one
        options |= {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".no-remote-files", "GDAL_HTTP_PROXY": "127.0.0.1:9"}
    with rasterio.Env(**options):
        yield


def open_dataset(path: Path, remote: bool = False) -> rasterio.DatasetReader:
    """Open a raster for reading; call it, and read from it, inside `gdal_settings`.

    remote: any driver, network included; only for files that one trusts.

    Raises:
        FileNotFoundError: no such file. ImageError: not of a known kind, or it cannot be read.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    name, container = printable(path), container_of(path)
    if not remote and container not in DRIVERS:
        raise ImageError(
            f"{name} is not a raster that can be read: known kinds are {', '.join(DRIVERS)}; one that describes data on"
            " a network needs --remote"
        )
    if not remote and container == "VRT":
        _check_vrt(path)
    driver = None if remote else DRIVERS[container] if container != "ENVI" or _is_envi(path) else "EHdr"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # images without a place are welcome
            file = rasterio.open(path, driver=driver)
        if not remote and "OVERVIEW_FILE" in file.tags(ns="OVERVIEWS"):
            file.close()
            raise ImageError(f"{name} refers to another file for its overviews, which only --remote allows")
        return file
    except UnicodeError as error:
        raise ImageError(f"{name} has a name that is no UTF-8 text, which GDAL cannot open: rename it") from error
    except ImageError:
        raise
    except Exception as error:  # rasterio passes on GDAL's many
        reason = str(error) if remote else f"{error}; or it is a {container} of a kind that GDAL does not read"
        raise ImageError(f"{name} is cut short or damaged ({reason})") from error


def is_georeferenced(path: Path, remote: bool = False) -> bool:
    """Whether a file has a place of its own (CRS, transform, control points, RPCs), also by a file beside it.

    GDAL is asked where it is there; else the file's tags and the names beside it tell. A file that cannot be read
    has none.
    """
    path = Path(path)
    try:
        container = container_of(path)
        return has_place(path, container, has_side_file(path), remote)
    except (ImageError, FileNotFoundError):
        return False


def has_place(path: Path, container: str | None, side_file: bool, remote: bool = False) -> bool:
    """`is_georeferenced` for who knows the container, and whether there is a side file, already."""
    if container is None:
        maybe = remote
    elif container in _NO_PLACE_INSIDE:
        maybe = side_file
    elif container in ("TIFF", "JPEG2000") and not has_geo():
        maybe = side_file or header_of(path, container).has_geo_tags
    else:
        maybe = True
    if not maybe or not has_geo():
        return maybe
    try:
        with gdal_settings(remote), open_dataset(path, remote) as file:
            return bool(file.crs or not file.transform.is_identity or file.gcps[0] or file.rpcs)
    except ImageError:
        return False


def has_side_file(path: Path) -> bool:
    """Whether a file beside an image tells more of it: a world file, GDAL's .aux.xml, a mask."""
    suffix = path.suffix[1:].lower()
    ends = {f"{suffix}w", f"{suffix[:1]}{suffix[-1:]}w", "wld", "tab"}
    names = [f"{path.stem}.{end}" for end in ends] + [f"{path.name}.{end}" for end in ("aux.xml", "msk")]
    return any(is_beside(path, name) for name in names)


def _is_envi(path: Path) -> bool:
    """Whether the header beside raw values is ENVI's; else it is Esri's."""
    for header in (path.with_suffix(".hdr"), path.with_name(path.name + ".hdr"), path.with_suffix(".HDR")):
        if header.is_file():
            with open(header, "rb") as file:
                return file.read(4) == b"ENVI"
    return True


def _check_vrt(path: Path, depth: int = 0) -> None:
    """Raise an ImageError unless all that a VRT refers to are local files that could be opened by themselves."""
    name = printable(path)
    if depth > VRT_DEPTH or path.stat().st_size > VRT_BYTES:
        raise ImageError(f"{name} is a VRT of too many parts, or of VRTs of VRTs: write it as a GeoTIFF")
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise ImageError(f"{name} is no VRT that can be read ({error})") from error
    for element in root.iter():
        if element.tag not in ("SourceFilename", "SourceDataset", "SourceDatasetName", "File"):
            # Only these name files; whatever else looks like an address is refused.
            texts = [element.text or "", *element.attrib.values()]
            if any(re.search(r"/vsi|<\w+", text) for text in texts):
                raise ImageError(f"{name} refers to more than local files ({element.tag}), which only --remote allows")
            continue
        text = (element.text or "").strip()
        relative = element.get("relativeToVRT", element.get("relativetoVRT", "0")) == "1"
        source = path.parent / text if relative else Path(text)
        try:
            container = container_of(source)
        except (FileNotFoundError, ImageError) as error:
            raise ImageError(f"{name} refers to {text!r}, which is no local image: {error}") from error
        if container not in DRIVERS:
            raise ImageError(f"{name} refers to {text!r}, which is no image of a known kind")
        if container == "VRT":
            _check_vrt(source, depth + 1)
