"""Segment a georeferenced scene in one call: a table of polygons, or a label map with coordinates."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from skysense_o.scenes.georeference import scene_tools
from skysense_o.scenes.options import SceneOptions, SceneOutputs

if TYPE_CHECKING:
    import geopandas
    import xarray

    from skysense_o.inference.predictor import Predictor
    from skysense_o.vocabulary import Vocabulary


def segment_scene(
    path: str | Path,
    classes: Vocabulary | Sequence[str] | str,
    *,
    weights: str | Path | Predictor = "mini",
    background: Sequence[str] | str = (),
    device: str = "auto",
    min_area: float = 0.0,
    simplify: float = 0.0,
    folder: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> geopandas.GeoDataFrame:
    """Segment a raster of any size into polygons.

    Args:
        path: the raster.
        classes, background: see `Predictor.__call__`.
        weights: see `Predictor.from_pretrained`; or a loaded Predictor.
        device: see `Predictor.from_pretrained`.
        min_area, simplify: see `SceneOutputs`.
        folder: the files are written there and kept, and an interrupted call resumes; None: nothing is kept.
        progress: show a progress bar on stderr.
        options: bands, gsd, aoi, window, overlap, memory, threshold, ...; see `SceneOptions`.

    Returns:
        One row per region: class_id, class_name, score_mean, area_m2, pixels, source, and the polygon in the CRS of the
        scene.

    Raises:
        ModuleNotFoundError: the extra "geo" is not installed.
        ValueError, FileNotFoundError: see `run_scene`.

    >>> table = segment_scene("demo/foz_30m.tif", "water,forest", device="cpu", min_area=1e5, progress=False)
    >>> sorted(set(table.class_name)), table.crs.to_epsg()
    (['forest', 'water'], 32621)
    """
    given = (path, classes, weights, background, device, folder, progress, options)
    with _result(*given, "gpkg", min_area=min_area, simplify=simplify) as (file, _):
        import geopandas

        from skysense_o.scenes.geojson import LAYER

        return geopandas.read_file(file, layer=LAYER)


def scene_label_map(
    path: str | Path,
    classes: Vocabulary | Sequence[str] | str,
    *,
    weights: str | Path | Predictor = "mini",
    background: Sequence[str] | str = (),
    device: str = "auto",
    folder: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> xarray.DataArray:
    """Segment a raster of any size into a label map with coordinates.

    Args:
        path, classes, weights, background, device, folder, progress, options: see `segment_scene`.

    Returns:
        (y,x) class ids, with the scene's coordinates and CRS (`.rio`). `attrs["classes"]` has the class per id,
        `attrs["_FillValue"]` the id of pixels without data.

    Raises:
        ModuleNotFoundError: rioxarray or the extra "geo" is not installed.
        ValueError, FileNotFoundError: see `run_scene`.
    """
    try:
        import rioxarray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "label maps for xarray need rioxarray: pip install rioxarray", name=error.name
        ) from error
    given = (path, classes, weights, background, device, folder, progress, options)
    with _result(*given, "geotiff") as (file, rows), rioxarray.open_rasterio(file) as bands:
        labels = bands.squeeze("band", drop=True).load()
    labels.name = "labels"
    labels.attrs["classes"] = [row["name"] for row in rows]
    return labels


@contextmanager
def _result(
    path: str | Path,
    classes: Vocabulary | Sequence[str] | str,
    weights: str | Path | Predictor,
    background: Sequence[str] | str,
    device: str,
    folder: str | Path | None,
    progress: bool,
    options: dict[str, Any],
    format_: str,
    **outputs: float,
) -> Iterator[tuple[Path, list[dict]]]:
    """Segment a scene; returns the path of the single file that is written, and one row per class."""
    known = [*(field.name for field in fields(SceneOptions)), *outputs]
    wrong = [name for name in options if name not in known]
    if wrong:
        raise TypeError(f"unknown option {wrong[0]!r}: choose among {', '.join(known)}")
    run_scene = scene_tools().run_scene
    from skysense_o.inference.predictor import Predictor
    from skysense_o.vocabulary import as_vocabulary

    predictor = weights if isinstance(weights, Predictor) else Predictor.from_pretrained(weights, device)
    vocabulary = as_vocabulary(classes, background)
    with TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dataset has no geotransform")  # as regions.tif in the work folder
        target = SceneOutputs(Path(folder or temporary), (format_,), **outputs)
        written, rows = run_scene(predictor, Path(path), vocabulary, target, SceneOptions(**options), progress=progress)
        yield written[0], rows
