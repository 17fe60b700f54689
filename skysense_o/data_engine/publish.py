"""Step 7: write the data set in Sky-SA's format, with splits, statistics, a data sheet and a manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from tqdm import tqdm

from skysense_o.data_engine.annotations import TileAnnotation, tile_annotations
from skysense_o.data_engine.counts import Counts, draw_figures
from skysense_o.data_engine.datasheet import datasheet
from skysense_o.data_engine.splitting import split
from skysense_o.data_engine.work_folder import WorkFolder, read_json, write_json, write_map
from skysense_o.whole_files import write_text

SPLITS = ("train", "val")


def publish(
    work: WorkFolder, *, confidence: float = 0.5, val: float = 0.1, seed: int = 0, group: str = "", title: str = ""
) -> dict:
    """Write set/: img_dir, ann_dir, skysa_dataset.jsonl, skysa_graph.jsonl, manifest, statistics, figures, data sheet.

    A pixel with value k belongs to entry k of its image's `ann_list`, counted from 0; 255 is unlabelled. Images
    without a named region are left out. The new data set is written to set.part, which replaces set/ when complete.

    Args:
        work: the work folder, after step "name".
        confidence: see `tile_annotations`.
        val: share of tiles for validation, see `split`.
        seed: seed of the split.
        group: regular expression that groups sources, see `split`.
        title: title of the data sheet.

    Returns:
        the statistics, as written to statistics.json.

    Raises:
        ValueError: no region has a name of this confidence, or an argument is wrong: see `tile_annotations`, `split`.
        FileNotFoundError: see `tile_annotations`.
    """
    annotated = [(row, a) for row, a in tile_annotations(work, confidence) if a.classes]
    if not annotated:
        raise ValueError(
            f"no region in {work.folder} has a name of confidence {confidence} or more: lower --confidence"
        )
    splits = split([row for row, _ in annotated], val, seed, group)
    folder = work / "set.part"
    shutil.rmtree(folder, ignore_errors=True)
    counts, lines = Counts(), []
    for row, annotation in tqdm(annotated, unit="tile", desc="publish"):
        line = _write_image(work, folder, row, annotation, splits[row["tile"]], counts)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(folder / "skysa_dataset.jsonl", "".join(lines))
    graph = work / "graph/skysa_graph.jsonl"
    if graph.is_file():
        shutil.copyfile(graph, folder / graph.name)
    statistics = counts.summary()
    write_json(folder / "statistics.json", statistics)
    draw_figures(counts, folder / "figures")
    engine = read_json(work / "engine.json") if (work / "engine.json").is_file() else {}
    sheet = datasheet(
        title or "A set made by SkySense-O's data engine", statistics, [row for row, _ in annotated], engine
    )
    write_text(folder / "DATASHEET.md", sheet)
    write_json(folder / "manifest.json", {"files": _hashes(folder), "statistics": statistics, "engine": engine})
    _replace_folder(folder, work / "set")
    return statistics


def _replace_folder(new: Path, target: Path) -> None:
    """Rename `new` to `target`. The old target stays beside it as <name>.old until `new` is in place."""
    old = target.with_name(f"{target.name}.old")
    if target.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.is_dir():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_image(
    work: WorkFolder, folder: Path, row: dict, annotation: TileAnnotation, part: str, counts: Counts
) -> dict:
    image, label = (f"{kind}/{part}/{row['tile']}.png" for kind in ("img_dir", "ann_dir"))
    labels, names = annotation.labels()
    write_map(folder / label, labels)
    (folder / image).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work / row["file"], folder / image)
    counts.add(row, labels, names, annotation, part)
    line = {
        "flickr_url": image,
        "segmentation": label,
        "ann_list": [{"category_name": name} for name in names],
        "split": part,
        "reviewed": annotation.reviewed,
        **{key: row[key] for key in ("source", "row", "column", "licence", "credit")},
    }
    if row["crs"]:
        line.update({key: row[key] for key in ("crs", "transform")})
    return line if row["gsd"] != row["gsd"] else {**line, "gsd": round(row["gsd"], 4)}  # NaN: unknown


def _hashes(folder: Path) -> dict[str, dict]:
    """{path: {"sha256", "bytes"}} for all files below a folder, sorted by path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "bytes": p.stat().st_size,
        }
        for p in files
    }
