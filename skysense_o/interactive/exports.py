"""Every file that can be made of what was found in a session, scenes' formats included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.image_io import gdal_settings
from skysense_o.inference.export import save
from skysense_o.interactive.session import Session
from skysense_o.scenes.georeference import scene_tools

SCENE = ("geotiff", "confidence", "gpkg", "geojson", "coco", "boxes", "areas")


def export(session: Session) -> list[Path]:
    """Write all formats into the session's folder, over those of an earlier call; the paths.

    The scene formats need the extra "geo", GeoJSON a place on the ground; without them they are left out.

    Raises:
        ValueError: nothing was found yet.
    """
    found, image, predictor = session.found, session.image, session.predictor
    if found is None:
        raise ValueError("nothing to save yet: ask for some words first")
    folder, stem = session.folder / "files", image.stem
    asked = [name for name, flag in zip(found.vocabulary.classes, found.vocabulary.background) if not flag]
    colors = session.palette[len(found.classes) - len(asked) :]
    settings = {
        "input": image.name,
        "weights": predictor.source,
        "weights_sha256": predictor.sha256,
        "words": [list(phrases) for phrases in found.vocabulary.phrases],
        "background": list(found.vocabulary.background),
        "threshold": found.threshold,
        "bands": None,
        "gsd": None,
    }
    formats = ["overlay", "labels", "json"] + ["probabilities"] * (found.probabilities is not None)
    written = save(found, image.rgb, folder, stem, formats, settings, colors)
    try:
        scene_tools()
    except ModuleNotFoundError:
        return written
    return written + _save_as_scene(session, folder, settings, colors)


def _save_as_scene(session: Session, folder: Path, settings: dict, colors: list) -> list[Path]:
    """The labels that people have seen, through the exports of scenes: nothing is computed anew."""
    from skysense_o.scenes.export import save_scene
    from skysense_o.scenes.label_store import LabelStore
    from skysense_o.scenes.options import SceneOutputs
    from skysense_o.scenes.raster import Raster
    from skysense_o.scenes.scene import Scene

    found, image = session.found, session.image
    path = image.scene
    if path is None:
        path = session.folder / f"{image.stem}.png"
        Image.fromarray(image.rgb).save(path)
    with gdal_settings(), Raster(path) as raster:
        formats = [name for name in SCENE if name != "geojson" or raster.areas.known]
        work = LabelStore(session.folder / "work", raster.size, len(found.classes), settings)
        rows, cols = (range(n) for n in raster.size)
        valid = np.ones(raster.size, bool) if image.valid is None else image.valid
        work.write(rows, cols, found.labels, found.score, valid)
        try:
            scene = Scene(raster, work, found.classes, found.threshold, settings)
            written, _ = save_scene(scene, SceneOutputs(folder, formats, image.stem, colors))
        finally:
            work.remove()
    return written
