"""Write the results of a session in all formats, including the formats of scenes, and pack them into one ZIP file."""

from __future__ import annotations

import shlex
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
    "_labels.tif": "label map as a GeoTIFF; georeferenced if the image is",
    "_confidence.tif": "score per pixel as a GeoTIFF",
    ".gpkg": "polygons per class for a GIS (GeoPackage)",
    ".geojson": "polygons per class in longitude and latitude",
    "_coco.json": "regions in COCO format",
    "_boxes.json": "bounding boxes, half-open XYXY in pixels",
    "_areas.csv": "pixels, share and area per class",
    ".json": "classes, shares, settings, and the command that repeats the run",
}
"""Description of each file, by the end of its name."""


def export_zip(session: Session) -> Path:
    """Write one ZIP file with all formats and a README.txt that describes each file.

    Returns:
        Path of the ZIP file, in the session's folder.

    Raises:
        ValueError: the session has no segmentation yet.
    """
    written = export(session)
    lines = [f"Results of SkySense-O for {session.image.name}", ""]
    for path in written:
        lines.append(f"{path.name}: {next(text for end, text in CONTENTS.items() if path.name.endswith(end))}")
    lines += ["", f"Classes: {', '.join(session.found.vocabulary.classes)}", f"Weights: {weights_name(session)}"]
    command = repeat_command(session)
    lines += ["", "The same on the command line:", f"    {command}"] if command else []
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

    The formats of scenes need the extra "geo", and GeoJSON needs a known ground location; else they are left out.

    Returns:
        Paths of the files.

    Raises:
        ValueError: the session has no segmentation yet.
    """
    found, image = session.found, session.image
    if found is None:
        raise ValueError("nothing to save yet: segment some words first")
    folder, stem = session.folder / "files", image.stem
    asked = [name for name, flag in zip(found.vocabulary.classes, found.vocabulary.background) if not flag]
    colors = session.palette[len(found.classes) - len(asked) :]
    settings = run_settings(session)
    probabilities = session.probabilities()
    formats = ["overlay", "labels", "json"] + ["probabilities"] * (probabilities is not None)
    written = save(replace(found, probabilities=probabilities), image.rgb, folder, stem, formats, settings, colors)
    try:
        scene_tools()
    except ModuleNotFoundError:
        return written
    return written + _save_as_scene(session, folder, settings, colors)


def run_settings(session: Session) -> dict:
    """The settings of the segmentation as JSON, with the command that repeats it.

    Raises:
        ValueError: the session has no segmentation yet.
    """
    found, predictor = session.found, session.predictor
    return {
        "command": repeat_command(session),
        "input": session.image.name,
        "weights": weights_name(session),
        "weights_sha256": predictor.sha256,
        "words": [list(phrases) for phrases in found.vocabulary.phrases],
        "background": list(found.vocabulary.background),
        "threshold": found.threshold,
        "bands": None,
        "gsd": None,
    }


def weights_name(session: Session) -> str:
    """Name of the weights, without the folder where they lie on this machine."""
    source = session.predictor.source
    return source if source.startswith("hf://") else Path(source).name


def repeat_command(session: Session) -> str | None:
    """The command line that repeats the segmentation; None if regions of the image were among the classes.

    The command segments a scene in windows, so borders between classes may differ by some pixels.

    Raises:
        ValueError: the session has no segmentation yet.
    """
    found = session.found
    if found is None:
        raise ValueError("nothing to repeat yet: segment some words first")
    if found.vocabulary.examples:
        return None
    entries = list(zip(["|".join(phrases) for phrases in found.vocabulary.phrases], found.vocabulary.background))
    words = ["python", "-m", "skysense_o", "segment", session.image.name]
    words += ["--classes", ",".join(entry for entry, background in entries if not background)]
    background = ",".join(entry for entry, background in entries if background)
    words += ["--background", background] if background else []
    words += ["--threshold", f"{found.threshold:g}"] if found.threshold is not None else []
    words += ["--weights", weights_name(session)] if session.predictor.source else []
    return shlex.join([*words, "--output", "out"])


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
