"""Find the objects of a scene of any size with a model that predicts instances (SAM 3).

The model runs on each window. Instances of overlapping windows are then merged into objects. Each line of
`instances_<process>.jsonl` holds the instances of one window, so a resumed run skips finished windows. Memory: boxes
and run-length encoded masks, about 0.5 kB per instance.
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
"""Minimum IoU, within the overlap of two windows, for their instances of one class to be the same object."""


@dataclass(frozen=True)
class WindowInstance:
    """One instance in one window. Coordinates are pixels of the scene; boxes are half-open XYXY."""

    label: int  # index into the vocabulary's classes
    score: float
    box: tuple[float, float, float, float]
    window: tuple[int, int, int, int]  # XYXY, clipped to the scene
    rle: dict  # mask of the window, as pycocotools encodes it

    def mask(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The mask within a box that lies in the window, bool (y1-y0,x1-x0)."""
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
    """Predict the instances of each window that has a valid pixel, and append them to `instances_<process>.jsonl`.

    Windows that are already in the file are skipped.

    Args:
        plan: the windows of the scene.
        folder: folder of the file.
        threshold, presence: see `Sam3.instances`.
        process, processes: index of this process, and their number; each runs its share of the rows of windows.
    """
    path = folder / f"instances_{process}.jsonl"
    done = {tuple(line["index"]) for line in _lines(path)}
    todo = [
        (k, c)
        for k in range(process, len(plan.rows.starts), processes)
        for c in range(len(plan.cols.starts))
        if (k, c) not in done
    ]
    with full_disk_told(path), open(path, "a") as file:
        file.write("\n" if file.tell() else "")  # ends the line that an interrupted run left incomplete
        for k, c in tqdm(todo, unit="window", desc=f"{raster.path.name}: instances", disable=not progress):
            window = _extent(plan.cols, c) + _extent(plan.rows, k)
            (x0, x1), (y0, y1) = window[:2], window[2:]
            shown = (min(x1, raster.size[1]), min(y1, raster.size[0]))
            instances = []
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
                        instances.append({"label": int(label), "score": float(score), "box": box, "rle": rle})
            file.write(json.dumps({"index": [k, c], "window": [x0, y0, *shown], "instances": instances}) + "\n")
            file.flush()


def _extent(axis: Axis, index: int) -> tuple[int, int]:
    """The pixels of the result that a window covers, half-open; a window may end beyond the scene."""
    scale, start = axis.target / axis.length, axis.starts[index]
    return round(start * scale), round((start + axis.window) * scale)


def _pixels(raster: Raster, plan: Plan, k: int, c: int, fill) -> Tensor:
    """Read the pixels of a window, uint8 (3,window,window); beyond the edge of the scene they are reflected."""
    y, x = (
        reflected(length, axis.starts[i], axis.starts[i] + axis.window)
        for length, axis, i in zip(raster.model_size, (plan.rows, plan.cols), (k, c))
    )
    y0, x0 = int(y.min()), int(x.min())
    pixels = torch.from_numpy(raster.pixels(range(y0, int(y.max()) + 1), range(x0, int(x.max()) + 1), fill))
    return pixels[:, y - y0][:, :, x - x0]


def _lines(path: Path) -> list[dict]:
    """Read a file of JSON lines; lines that are empty or incomplete are left out."""
    found = []
    for line in path.read_text().split("\n") if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # empty, or incomplete because the run was interrupted
            continue
    return found


def instance_regions(
    folder: Path, work: LabelStore, raster: Raster, ids: dict[int, int], path: Path, min_area: float = 0.0
) -> Regions:
    """Merge the instances of all windows into objects, and write the object index of each pixel to `path`.

    Where objects overlap, the pixel belongs to the object with the higher score.

    Args:
        folder: folder of `instances_*.jsonl`.
        ids: index of a class in the vocabulary -> its id in the label map.
        path: the int32 GeoTIFF to write; 0 is no object.
        min_area: see `find_regions`.
    """
    lines = [line for file in sorted(folder.glob("instances_*.jsonl")) for line in _lines(file)]
    instances = [
        WindowInstance(window=tuple(line["window"]), **instance) for line in lines for instance in line["instances"]
    ]
    group = _objects(instances)
    count = int(group.max()) + 1 if instances else 0
    score, label = np.zeros(count), np.zeros(count, int)
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    for g, instance in zip(group, instances):
        score[g], label[g] = max(score[g], instance.score), ids[instance.label]
        low[g], high[g] = np.minimum(low[g], instance.box[:2]), np.maximum(high[g], instance.box[2:])
    options = {"driver": "GTiff", "dtype": "int32", "count": 1, "tiled": True, "blockxsize": 512, "blockysize": 512}
    pixels, area = np.zeros(count + 1, np.int64), np.zeros(count + 1)
    with rasterio.open(path, "w+", height=work.size[0], width=work.size[1], BIGTIFF="IF_SAFER", **options) as file:
        for i in sorted(range(len(instances)), key=lambda i: score[group[i]]):
            _paint(file, instances[i], int(group[i]) + 1, raster)
        for rows in work.bands():
            painted = file.read(1, window=Window(0, rows.start, work.size[1], len(rows)))
            starts, lengths = runs(painted)
            index, row, col = painted.ravel()[starts], starts // work.size[1] + rows.start, starts % work.size[1]
            ground = lengths * raster.areas.at(row, col + (lengths - 1) / 2)
            pixels += np.bincount(index, lengths, count + 1).astype(np.int64)
            area += np.bincount(index, ground, count + 1)
        kept = (pixels[1:] > 0) & (area[1:] >= min_area)
        renumbered = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)
        for rows in work.bands():
            window = Window(0, rows.start, work.size[1], len(rows))
            file.write(renumbered[file.read(1, window=window)], 1, window=window)
    limit = np.array(work.size[::-1])
    boxes = np.concatenate([np.clip(np.floor(low), 0, limit), np.clip(np.ceil(high), 0, limit)], axis=1)[kept]
    return Regions(label[kept], pixels[1:][kept], area[1:][kept], score[kept], boxes.astype(int), path)


def _objects(instances: list[WindowInstance]) -> np.ndarray:
    """The object index of each instance, (N,)."""
    if not instances:
        return np.zeros(0, int)
    boxes = shapely.box(*np.array([instance.box for instance in instances]).T)
    edges = []
    for i, j in shapely.STRtree(boxes).query(boxes).T:
        a, b = instances[i], instances[j]
        if i < j and a.label == b.label and a.window != b.window and _overlap(a, b) >= SAME_OBJECT:
            edges.append((i, j))
    pairs = np.array(edges, int).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(instances),) * 2)
    return connected_components(graph, directed=False)[1]


def _overlap(a: WindowInstance, b: WindowInstance) -> float:
    """IoU within the overlap of both windows; 0 if they do not overlap."""
    x0, y0 = (max(p, q) for p, q in zip(a.window[:2], b.window[:2]))
    x1, y1 = (min(p, q) for p, q in zip(a.window[2:], b.window[2:]))
    if x0 >= x1 or y0 >= y1:
        return 0.0
    one, other = a.mask(x0, y0, x1, y1), b.mask(x0, y0, x1, y1)
    return float((one & other).sum() / max(1, (one | other).sum()))


def _paint(file, instance: WindowInstance, index: int, raster: Raster) -> None:
    """Write an object's index into the valid pixels of one of its instances."""
    x0, y0, x1, y1 = instance.window
    mask = instance.mask(x0, y0, x1, y1)
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left, below, right = rows[0], cols[0], rows[-1] + 1, cols[-1] + 1
    inside = mask[top:below, left:right] & raster.valid(range(y0 + top, y0 + below), range(x0 + left, x0 + right))
    window = Window(x0 + left, y0 + top, right - left, below - top)
    file.write(np.where(inside, index, file.read(1, window=window)).astype(np.int32), 1, window=window)
