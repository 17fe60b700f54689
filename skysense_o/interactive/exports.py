"""Write the results of a session in all formats, those of scenes included, and pack them into one ZIP file."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from skysense_o.image_io import gdal_settings
from skysense_o.inference.export import save
from skysense_o.interactive.session import Session
from skysense_o.scenes.georeference import scene_tools
from skysense_o.whole_files import whole

SCENE = ("geotiff", "confidence", "gpkg", "geojson", "coco", "boxes", "areas")


CONTENTS = {
    "_overlay.png": "the image with coloured masks and a legend",
    "_labels.png": "label map: the class index per pixel; the JSON lists the indices",
    "_probabilities.npz": "probability per class and pixel: (C,H,W) float16 and class_names",
    "_labels.tif": "label map as a GeoTIFF; it has a place on the ground if the image has one",
    "_confidence.tif": "score per pixel as a GeoTIFF",
    ".gpkg": "polygons per class for a GIS (GeoPackage)",
    ".geojson": "polygons per class in longitude and latitude",
    "_coco.json": "regions in COCO format",
    "_boxes.json": "bounding boxes, half-open XYXY in pixels",
    "_areas.csv": "pixels, share and area per class",
    ".json": "classes, shares and settings",
}
"""What the files hold, by the end of their name."""


def export_zip(session: Session) -> Path:
    """Write one ZIP file with all formats and a README.txt that tells what each file is.

    Returns:
        Path of the ZIP file, in the session's folder.

    Raises:
        ValueError: the session has no segmentation yet.
    """
    written = export(session)
    lines = [f"Results of SkySense-O for {session.image.name}", ""]
    for path in written:
        lines.append(f"{path.name}: {next(text for end, text in CONTENTS.items() if path.name.endswith(end))}")
    lines += ["", f"Classes: {', '.join(session.found.vocabulary.classes)}", f"Weights: {session.predictor.source}"]
    if not any(path.suffix == ".npz" for path in written):
        lines.append("Probabilities were left out: they are too large for this image and these classes.")
    target = session.folder / f"{session.image.stem}_results.zip"
    with whole(target) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("README.txt", "\n".join(lines) + "\n")
        for path in written:
            file.write(path, path.name)
    return target


def export(session: Session) -> list[Path]:
    """Write all formats into the session's folder; files of an earlier call are replaced.

    The formats of scenes need the extra "geo", and GeoJSON needs a place on the ground; else they are left out.

    Returns:
        Paths of the files.

    Raises:
        ValueError: the session has no segmentation yet.
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
    probabilities = session.probabilities()
    formats = ["overlay", "labels", "json"] + ["probabilities"] * (probabilities is not None)
    written = save(replace(found, probabilities=probabilities), image.rgb, folder, stem, formats, settings, colors)
    try:
        scene_tools()
    except ModuleNotFoundError:
        return written
    return written + _save_as_scene(session, folder, settings, colors)


def _save_as_scene(session: Session, folder: Path, settings: dict, colors: list) -> list[Path]:
    """Write the displayed labels in the formats of scenes; nothing is computed again."""
    from skysense_o.scenes.export import save_scene
    from skysense_o.scenes.label_store import LabelStore
    from skysense_o.scenes.options import SceneOutputs
    from skysense_o.scenes.raster import Raster
    from skysense_o.scenes.scene import Scene

    found, image = session.found, session.image
    path = image.scene
    if path is None:
        path = session.folder / f"{image.stem}.png"
        with whole(path) as part:
            Image.fromarray(image.rgb).save(part, format="PNG")
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
