"""Open files with GDAL safely: only local rasters of known kinds. Needs the extra "geo".

A file from somebody else may contain a network address instead of pixels (WMS, WMTS, WCS, a VRT with /vsicurl/...), and
GDAL would fetch it. So a file is opened only with the driver for the format that its first bytes show. A VRT is opened
only if all files that it names are local images. GDAL's network file systems are off. `remote=True` lifts all three
limits.
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

from skysense_o.errors import install_extra
from skysense_o.image_io.files import ImageError, container_of, is_beside, printable
from skysense_o.image_io.jp2_boxes import check_boxes
from skysense_o.image_io.pillow import header_of

if TYPE_CHECKING:
    import rasterio

DRIVERS = {
    "TIFF": "GTiff", "PNG": "PNG", "JPEG": "JPEG", "JPEG2000": "JP2OpenJPEG", "GIF": "GIF", "BMP": "BMP",
    "WEBP": "WEBP", "PNM": "PNM", "HFA": "HFA", "NITF": "NITF", "VRT": "VRT", "ENVI": "ENVI", "AAIGrid": "AAIGrid",
}  # fmt: skip
"""GDAL driver per file format. Raw values with a header file (ENVI) may need the driver EHdr instead."""
_NO_GEOREFERENCE_INSIDE = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PNM")
"""File formats that can only be georeferenced by a side file. Files without a side file need not be opened with GDAL to
find out."""
GDAL_CACHE = 64 * 2**20
HTTP_TIMEOUT = 20
VRT_DEPTH = 4
VRT_BYTES = 16 * 2**20
WHAT_IS_LOST = f"its georeference is lost: {install_extra('geo')} keeps it"


@cache
def has_geo() -> bool:
    """Whether rasterio, which contains GDAL, is installed (extra "geo")."""
    try:
        return importlib.util.find_spec("rasterio") is not None
    except ValueError:  # sys.modules["rasterio"] is None
        return False


@contextmanager
def gdal_settings(remote: bool = False) -> Iterator[None]:
    """Configure GDAL: a small cache (by default GDAL uses 5 % of the memory), a time limit, no network unless `remote`.

    Images without georeference are allowed, so rasterio's warnings about such images are not shown.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    options = {"GDAL_CACHEMAX": GDAL_CACHE, "GDAL_HTTP_TIMEOUT": HTTP_TIMEOUT, "GDAL_HTTP_CONNECTTIMEOUT": HTTP_TIMEOUT}
    options["GDAL_PNG_WHOLE_IMAGE_OPTIM"] = False  # this optimisation would accept a truncated PNG
    if not remote:  # GDAL may only open network files with this suffix, which no file has
        options |= {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".no-remote-files", "GDAL_HTTP_PROXY": "127.0.0.1:9"}
    with rasterio.Env(**options), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def open_dataset(path: Path, remote: bool = False) -> rasterio.DatasetReader:
    """Open a raster for reading. Call this function, and read from the raster, inside `gdal_settings`.

    Args:
        remote: allow any driver and the network; only for files from a trusted source.

    Raises:
        FileNotFoundError: the file does not exist.
        ImageError: the file is not a raster of a known kind, or cannot be read.
    """
    import rasterio

    name, container = printable(path), container_of(path)
    if not remote and container not in DRIVERS:
        raise ImageError(
            f"{name} is not a raster that can be read: known kinds are {', '.join(DRIVERS)}; a file that refers to data"
            " on a network needs --remote"
        )
    if not remote and container == "VRT":
        _check_vrt(path)
    if container == "JPEG2000":
        check_boxes(path)
    driver = None if remote else DRIVERS[container] if container != "ENVI" or _is_envi(path) else "EHdr"
    try:
        file = rasterio.open(path, driver=driver)
        if not remote and "OVERVIEW_FILE" in file.tags(ns="OVERVIEWS"):
            file.close()
            raise ImageError(f"{name} refers to another file for its overviews, which needs --remote")
        return file
    except UnicodeError as error:
        raise ImageError(f"{name} has a name that is not UTF-8, which GDAL cannot open: rename it") from error
    except ImageError:
        raise
    except Exception as error:  # GDAL raises many types of errors
        reason = str(error) if remote else f"{error}; or it is a {container} of a kind that GDAL does not read"
        raise ImageError(f"{name} is cut short or damaged ({reason})") from error


def is_georeferenced(path: Path, remote: bool = False) -> bool:
    """Whether a file is georeferenced, by itself or a side file: CRS, transform, ground control points or RPCs.

    Without GDAL, the tags of the file and the names of side files decide. A file that cannot be read is not
    georeferenced.
    """
    path = Path(path)
    try:
        container = container_of(path)
        return has_georeference(path, container, has_side_file(path), remote)
    except (ImageError, FileNotFoundError):
        return False


def has_georeference(path: Path, container: str | None, side_file: bool, remote: bool = False) -> bool:
    """The same as `is_georeferenced`, for a caller that knows the file format and whether there is a side file."""
    if container is None:
        maybe = remote
    elif container in _NO_GEOREFERENCE_INSIDE:
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
    """Whether an image has a side file: a world file, GDAL's .aux.xml or a mask (.msk)."""
    suffix = path.suffix[1:].lower()
    ends = {f"{suffix}w", f"{suffix[:1]}{suffix[-1:]}w", "wld", "tab"}
    names = [f"{path.stem}.{end}" for end in ends] + [f"{path.name}.{end}" for end in ("aux.xml", "msk")]
    return any(is_beside(path, name) for name in names)


def _is_envi(path: Path) -> bool:
    """Whether the header file of raw values is in ENVI's format; other header files are in Esri's format."""
    for header in (path.with_suffix(".hdr"), path.with_name(path.name + ".hdr"), path.with_suffix(".HDR")):
        if header.is_file():
            with open(header, "rb") as file:
                return file.read(4) == b"ENVI"
    return True


def _check_vrt(path: Path, depth: int = 0) -> None:
    """Check that a VRT refers only to local images that may also be opened directly.

    Raises:
        ImageError: the VRT refers to something else, or cannot be read.
    """
    name = printable(path)
    if depth > VRT_DEPTH or path.stat().st_size > VRT_BYTES:
        raise ImageError(f"{name} is a VRT that is too large or nested too deeply: convert it to a GeoTIFF")
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise ImageError(f"{name} is not a readable VRT ({error})") from error
    for element in root.iter():
        if element.tag not in ("SourceFilename", "SourceDataset", "SourceDatasetName", "File"):
            # Only these elements name files; anything else that looks like an address is refused.
            texts = [element.text or "", *element.attrib.values()]
            if any(re.search(r"/vsi|<\w+", text) for text in texts):
                raise ImageError(f"{name} refers to more than local files ({element.tag}), which needs --remote")
            continue
        text = (element.text or "").strip()
        relative = element.get("relativeToVRT", element.get("relativetoVRT", "0")) == "1"
        source = path.parent / text if relative else Path(text)
        try:
            container = container_of(source)
        except (FileNotFoundError, ImageError) as error:
            raise ImageError(f"{name} refers to {text!r}, which is not a local image: {error}") from error
        if container not in DRIVERS:
            raise ImageError(f"{name} refers to {text!r}, which is not an image of a known kind")
        if container == "VRT":
            _check_vrt(source, depth + 1)
        if container == "JPEG2000":
            check_boxes(source)
