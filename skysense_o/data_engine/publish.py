"""Step 7: a set in the shape of Sky-SA, split, counted, described and with a manifest."""

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

SPLITS = ("train", "val")


def publish(
    work: WorkFolder, *, confidence: float = 0.5, val: float = 0.1, seed: int = 0, group: str = "", title: str = ""
) -> dict:
    """Write set/: img_dir, ann_dir, skysa_dataset.jsonl, skysa_graph.jsonl, manifest, statistics, figures, data sheet.

    A label pixel of value k is the k-th entry of its image's `ann_list`; 255 is what nobody is sure of. Images
    without any name are left out. The set is made beside the old one and takes its place when it is whole.

    Args:
        confidence: see `annotations`. val, seed, group: see `split`. title: of the set.

    Returns:
        the statistics, as written.

    Raises:
        ValueError, FileNotFoundError: see `annotations` and `split`; ValueError too where no image has a name.
    """
    found = [(row, a) for row, a in tile_annotations(work, confidence) if a.names]
    if not found:
        raise ValueError(
            f"no region in {work.folder} has a name of confidence {confidence} or more: lower --confidence"
        )
    splits = split([row for row, _ in found], val, seed, group)
    folder = work / "set.part"
    shutil.rmtree(folder, ignore_errors=True)
    counts, lines = Counts(), []
    for row, annotation in tqdm(found, unit="tile", desc="publish"):
        line = _write_image(work, folder, row, annotation, splits[row["tile"]], counts)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / "skysa_dataset.jsonl").write_text("".join(lines), encoding="utf-8")
    graph = work / "graph/skysa_graph.jsonl"
    if graph.is_file():
        shutil.copyfile(graph, folder / graph.name)
    statistics = counts.summary()
    write_json(folder / "statistics.json", statistics)
    draw_figures(counts, folder / "figures")
    engine = read_json(work / "engine.json") if (work / "engine.json").is_file() else {}
    sheet = datasheet(title or "A set made by SkySense-O's data engine", statistics, [row for row, _ in found], engine)
    (folder / "DATASHEET.md").write_text(sheet, encoding="utf-8")
    write_json(folder / "manifest.json", {"files": _hashes(folder), "statistics": statistics, "engine": engine})
    old = work / "set"
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    return statistics


def _write_image(
    work: WorkFolder, folder: Path, row: dict, annotation: TileAnnotation, which: str, counts: Counts
) -> dict:
    image, label = (f"{kind}/{which}/{row['tile']}.png" for kind in ("img_dir", "ann_dir"))
    labels, names = annotation.labels()
    write_map(folder / label, labels)
    (folder / image).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work / row["file"], folder / image)
    counts.add(row, labels, names, annotation, which)
    line = {
        "flickr_url": image,
        "segmentation": label,
        "ann_list": [{"category_name": name} for name in names],
        "split": which,
        "reviewed": annotation.reviewed,
        **{key: row[key] for key in ("source", "row", "column", "licence", "credit")},
    }
    if row["crs"]:
        line.update({key: row[key] for key in ("crs", "transform")})
    return line if row["gsd"] != row["gsd"] else {**line, "gsd": round(row["gsd"], 4)}  # NaN: not known


def _hashes(folder: Path) -> dict[str, dict]:
    """{file: {"sha256", "bytes"}} of all files of a folder, in order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "bytes": p.stat().st_size,
        }
        for p in files
    }
