"""Step 3: divide each tile into disjoint regions, numbered from 1. Pixels of no region have the number 0.

Shape letters: K masks, H W pixels, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skysense_o.data_engine.partition import paint_masks, tidy
from skysense_o.data_engine.work_folder import WorkFolder, each_tile, write_map
from skysense_o.errors import file_error
from skysense_o.inference.automatic_masks import generate_masks
from skysense_o.vocabulary import Vocabulary
from skysense_o.whole_files import write_json
from skysense_o.workers import Each, here

if TYPE_CHECKING:
    from skysense_o.inference.predictor import Predictor

METHODS = ("superpixels", "words", "everything", "sam")
Proposer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 (H,W,3) -> integers (H,W), each pixel's region, 0 for none; and float (H,W), its region's score, 0..1."""


def proposer(
    method: str,
    predictor: Predictor | None,
    *,
    vocabulary: Vocabulary | None = None,
    sam: Path | None = None,
    device: str = "cpu",
    regions: float = 1.0,
) -> Proposer:
    """Make the function that divides an image into regions.

    Args:
        method: one of METHODS. "superpixels": superpixels merged by colour and tower features. "words": the label map
            over a vocabulary. "everything": automatic masks (weights trained with prompts). "sam": masks of a Segment
            Anything checkpoint.
        predictor: the model; None for "sam", which does not use it.
        vocabulary: classes for "words".
        sam: checkpoint for "sam".
        device: device for "sam".
        regions: for "superpixels", factor of the distance up to which superpixels are merged. A factor above 1 gives
            fewer regions.

    Raises:
        ValueError: the method is unknown, or an argument that it needs is missing.
    """
    if method == "sam":
        from skysense_o.data_engine.sam import sam_masks

        if sam is None:
            raise ValueError("--method sam needs --sam FILE, a checkpoint of Segment Anything")
        generate = sam_masks(sam, device)
        return lambda rgb: paint_masks(*generate(rgb), rgb.shape[:2])
    if method == "superpixels":
        from skysense_o.data_engine.superpixels import superpixels

        return lambda rgb: superpixels(predictor.set_image(rgb), rgb, regions)
    if method == "words":
        if vocabulary is None:
            raise ValueError("--method words needs classes: --classes, --dataset or --open-world")
        return lambda rgb: by_words(predictor, rgb, vocabulary)
    if method == "everything":
        return lambda rgb: by_clicks(predictor, rgb)
    raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")


def by_words(predictor: Predictor, rgb: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Regions from the predicted label map; pixels of background classes are in no region. See `Proposer`."""
    result = predictor(rgb, vocabulary)
    return result.labels + (not result.has_none), result.score


def by_clicks(predictor: Predictor, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regions from automatic masks, which need weights trained with prompts. See `Proposer`."""
    proposals = generate_masks(predictor.set_image(rgb))
    masks = np.stack([p.mask for p in proposals]) if proposals else np.zeros((0, *rgb.shape[:2]), bool)
    return paint_masks(masks, np.array([p.iou_pred for p in proposals]), rgb.shape[:2])


def propose(work: WorkFolder, find: Proposer | None, *, least: int = 100, each: Each | None = None) -> list[dict]:
    """Write the regions of each kept tile that has none yet.

    Args:
        work: the work folder, after step "collect".
        find: divides an image into regions, see `proposer`.
        least: smallest region in pixels; smaller regions join the neighbour with the longest shared border.
        each: distributes the tiles over workers that hold a proposer; None: this process does all tiles, with `find`.

    Returns:
        {"tile", "error"} for each tile that could not be read.

    Raises:
        ValueError: `least` is below 1.
    """
    if least < 1:
        raise ValueError(f"--least {least} is out of range: at least 1 pixel")
    rows = [row for row in work.kept() if not (work / f"regions/{row['tile']}.json").is_file()]
    return each_tile(each or here(find), partial(_propose_tile, work, least), rows, "propose")


def _propose_tile(work: WorkFolder, least: int, find: Proposer, row: dict) -> str:
    try:
        labels, score = find(work.image(row))
        regions = tidy(labels, least)
    except Exception as error:  # one bad tile does not end the batch
        return file_error(error, row["tile"])
    write_map(work / f"regions/{row['tile']}.png", regions)
    write_json(work / f"regions/{row['tile']}.json", described(regions, score))
    return ""


def described(regions: np.ndarray, score: np.ndarray) -> list[dict]:
    """Describe each region for regions/<tile>.json.

    Args:
        regions: integers (H,W); pixels of no region are 0 and are left out.
        score: float (H,W).

    Returns:
        {"region", "box", "pixels", "score"} per region. box: [x0, y0, x1, y1] in pixels, half-open. score: mean over
        the region, 0..1.
    """
    ids, inverse = np.unique(regions, return_inverse=True)
    inverse = inverse.ravel()
    pixels = np.bincount(inverse)
    means = np.bincount(inverse, np.clip(score, 0, 1).ravel()) / pixels
    y, x = np.divmod(np.arange(regions.size), regions.shape[1])
    low, high = np.full((len(ids), 2), regions.size), np.full((len(ids), 2), -1)
    for axis, values in enumerate((x, y)):
        np.minimum.at(low[:, axis], inverse, values)
        np.maximum.at(high[:, axis], inverse, values)
    rows = zip(ids.tolist(), low.tolist(), high.tolist(), pixels.tolist(), means.tolist())
    return [
        {"region": k, "box": [*first, *(v + 1 for v in last)], "pixels": n, "score": round(mean, 4)}
        for k, first, last, n, mean in rows
        if k
    ]
