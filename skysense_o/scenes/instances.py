"""Objects of a scene of any size, from a model that finds instances (SAM 3): window by window, then joined.

A line of `instances_<process>.jsonl` holds what one window has shown, so an interrupted run does no window twice.
Memory: the boxes and packed masks of the scene's objects, about 0.5 kB each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import shapely
import torch
from pycocotools import mask as coco_mask
from rasterio.windows import Window
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm import tqdm

from skysense_o.inference.blending import reflected
from skysense_o.inference.predictor import Predictor
from skysense_o.inference.windows import Axis, Plan
from skysense_o.scenes.label_store import LabelStore
from skysense_o.scenes.raster import Raster
from skysense_o.scenes.regions import Regions, runs
from skysense_o.vocabulary import Vocabulary
from skysense_o.whole_files import full_disk_told

SAME_OBJECT = 0.5
"""IoU, within what two windows both show, from which on their instances of a class are one object."""


@dataclass(frozen=True)
class Part:
    """An object as one window shows it; pixels of the scene, half-open."""

    label: int  # index into the vocabulary's classes
    score: float
    box: tuple[float, float, float, float]
    window: tuple[int, int, int, int]  # x0,y0,x1,y1, cut at the scene's end
    rle: dict

    def mask(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """bool, of a part of its window."""
        whole = coco_mask.decode({**self.rle, "counts": self.rle["counts"].encode()}).astype(bool)
        left, top = self.window[:2]
        return whole[y0 - top : y1 - top, x0 - left : x1 - left]


@torch.inference_mode()
def collect_instances(
    predictor: Predictor,
    raster: Raster,
    vocabulary: Vocabulary,
    plan: Plan,
    folder: Path,
    threshold: float | None,
    presence: Tensor | None,
    process: int = 0,
    processes: int = 1,
    progress: bool = True,
) -> None:
    """Ask each window of a scene that holds a valid pixel for its instances; what is written is not asked again.

    Args:
        plan: the windows. folder: for the lines. threshold, presence: see `Sam3.instances`.
        process, processes: which share of the rows of windows is done here.
    """
    path = folder / f"instances_{process}.jsonl"
    done = {tuple(line["place"]) for line in _lines(path)}
    places = [
        (k, c)
        for k in range(process, len(plan.rows.starts), processes)
        for c in range(len(plan.cols.starts))
        if (k, c) not in done
    ]
    with full_disk_told(path), open(path, "a") as file:
        file.write("\n" if file.tell() else "")  # ends a line that a killed run left unfinished
        for k, c in tqdm(places, unit="window", desc=f"{raster.path.name}: instances", disable=not progress):
            window = _extent(plan.cols, c) + _extent(plan.rows, k)
            (x0, x1), (y0, y1) = window[:2], window[2:]
            shown = (min(x1, raster.size[1]), min(y1, raster.size[0]))
            parts = []
            if raster.valid(range(y0, shown[1]), range(x0, shown[0])).any():
                pixels = _pixels(raster, plan, k, c, predictor.fill)
                with predictor.in_precision():
                    embedding, _, _ = predictor.model.embed_images([pixels])
                    (found,) = predictor.model.instances(
                        embedding, [vocabulary], [(y1 - y0, x1 - x0)], threshold, presence
                    )
                for label, score, box, mask in zip(found.labels, found.scores, found.boxes, found.masks):
                    mask = mask[: shown[1] - y0, : shown[0] - x0].cpu().numpy()
                    if mask.any():
                        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
                        box = (box.cpu() + torch.tensor([x0, y0, x0, y0])).tolist()
                        rle["counts"] = rle["counts"].decode()
                        parts.append({"label": int(label), "score": float(score), "box": box, "rle": rle})
            file.write(json.dumps({"place": [k, c], "window": [x0, y0, *shown], "parts": parts}) + "\n")
            file.flush()


def _extent(axis: Axis, number: int) -> tuple[int, int]:
    """First and last pixel (not included) of the result that a window shows; it may reach beyond the scene's end."""
    scale, start = axis.target / axis.length, axis.starts[number]
    return round(start * scale), round((start + axis.window) * scale)


def _pixels(raster: Raster, plan: Plan, k: int, c: int, fill) -> Tensor:
    """uint8 (3,window,window), reflected beyond the scene's end."""
    y, x = (
        reflected(length, axis.starts[i], axis.starts[i] + axis.window)
        for length, axis, i in zip(raster.model_size, (plan.rows, plan.cols), (k, c))
    )
    y0, x0 = int(y.min()), int(x.min())
    pixels = torch.from_numpy(raster.pixels(range(y0, int(y.max()) + 1), range(x0, int(x.max()) + 1), fill))
    return pixels[:, y - y0][:, :, x - x0]


def _lines(path: Path) -> list[dict]:
    """What earlier runs have written whole."""
    found = []
    for line in path.read_text().split("\n") if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # empty, or being written when the run was killed
            continue
    return found


def instance_regions(
    folder: Path, work: LabelStore, raster: Raster, ids: dict[int, int], path: Path, min_area: float = 0.0
) -> Regions:
    """Join what the windows have shown and write the object of each pixel to `path`; the better score lies on top.

    ids: class of the vocabulary -> id that the label map counts it by. min_area: as `find_regions`.
    """
    lines = [line for file in sorted(folder.glob("instances_*.jsonl")) for line in _lines(file)]
    parts = [Part(window=tuple(line["window"]), **part) for line in lines for part in line["parts"]]
    group = _objects(parts)
    count = int(group.max()) + 1 if parts else 0
    score, label = np.zeros(count), np.zeros(count, int)
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    for g, part in zip(group, parts):
        score[g], label[g] = max(score[g], part.score), ids[part.label]
        low[g], high[g] = np.minimum(low[g], part.box[:2]), np.maximum(high[g], part.box[2:])
    options = {"driver": "GTiff", "dtype": "int32", "count": 1, "tiled": True, "blockxsize": 512, "blockysize": 512}
    pixels, area = np.zeros(count + 1, np.int64), np.zeros(count + 1)
    with rasterio.open(path, "w+", height=work.size[0], width=work.size[1], BIGTIFF="IF_SAFER", **options) as file:
        for i in sorted(range(len(parts)), key=lambda i: score[group[i]]):
            _paint(file, parts[i], int(group[i]) + 1, raster)
        for rows in work.bands():
            painted = file.read(1, window=Window(0, rows.start, work.size[1], len(rows)))
            starts, lengths = runs(painted)
            number, row, col = painted.ravel()[starts], starts // work.size[1] + rows.start, starts % work.size[1]
            ground = lengths * raster.areas.at(row, col + (lengths - 1) / 2)
            pixels += np.bincount(number, lengths, count + 1).astype(np.int64)
            area += np.bincount(number, ground, count + 1)
        kept = (pixels[1:] > 0) & (area[1:] >= min_area)
        renumbered = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)
        for rows in work.bands():
            window = Window(0, rows.start, work.size[1], len(rows))
            file.write(renumbered[file.read(1, window=window)], 1, window=window)
    limit = np.array(work.size[::-1])
    boxes = np.concatenate([np.clip(np.floor(low), 0, limit), np.clip(np.ceil(high), 0, limit)], axis=1)[kept]
    return Regions(label[kept], pixels[1:][kept], area[1:][kept], score[kept], boxes.astype(int), path)


def _objects(parts: list[Part]) -> np.ndarray:
    """(N,) number of the object that each part belongs to."""
    if not parts:
        return np.zeros(0, int)
    boxes = shapely.box(*np.array([part.box for part in parts]).T)
    edges = []
    for i, j in shapely.STRtree(boxes).query(boxes).T:
        a, b = parts[i], parts[j]
        if i < j and a.label == b.label and a.window != b.window and _overlap(a, b) >= SAME_OBJECT:
            edges.append((i, j))
    pairs = np.array(edges, int).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(parts),) * 2)
    return connected_components(graph, directed=False)[1]


def _overlap(a: Part, b: Part) -> float:
    """IoU within what both windows show."""
    x0, y0 = (max(p, q) for p, q in zip(a.window[:2], b.window[:2]))
    x1, y1 = (min(p, q) for p, q in zip(a.window[2:], b.window[2:]))
    if x0 >= x1 or y0 >= y1:
        return 0.0
    one, other = a.mask(x0, y0, x1, y1), b.mask(x0, y0, x1, y1)
    return float((one & other).sum() / max(1, (one | other).sum()))


def _paint(file, part: Part, number: int, raster: Raster) -> None:
    x0, y0, x1, y1 = part.window
    mask = part.mask(x0, y0, x1, y1)
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left, below, right = rows[0], cols[0], rows[-1] + 1, cols[-1] + 1
    inside = mask[top:below, left:right] & raster.valid(range(y0 + top, y0 + below), range(x0 + left, x0 + right))
    window = Window(x0 + left, y0 + top, right - left, below - top)
    file.write(np.where(inside, number, file.read(1, window=window)).astype(np.int32), 1, window=window)
