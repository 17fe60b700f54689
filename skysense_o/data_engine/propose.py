"""Step 3: each tile falls into regions, which share no pixel; with the rest region, 0, they cover all of it.

Alphabet: K masks, H W pixels, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from skysense_o.data_engine.partition import paint_masks, tidy
from skysense_o.data_engine.work_folder import WorkFolder, write_json, write_map
from skysense_o.inference.automatic_masks import generate_masks
from skysense_o.inference.images import ImageError
from skysense_o.inference.predictor import NONE
from skysense_o.vocabulary import Vocabulary

if TYPE_CHECKING:
    from skysense_o.inference.predictor import Predictor

METHODS = ("superpixels", "words", "everything", "sam")
Proposer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 (H,W,3) -> labels, integers (H,W), 0 for the rest, and how good each pixel's region is, float (H,W), 0..1."""


def proposer(
    method: str,
    predictor: Predictor | None,
    *,
    vocabulary: Vocabulary | None = None,
    sam: Path | None = None,
    device: str = "cpu",
    regions: float = 1.0,
) -> Proposer:
    """How regions are found.

    Args:
        method: one of METHODS. everything, words: by the predictor's masks. superpixels: by its tower. sam: by a
            Segment Anything checkpoint.
        vocabulary: for words. sam, device: file and where it runs. regions: for superpixels, fewer above 1, more below.

    Raises:
        ValueError: unknown method, or one that lacks what it needs.
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
            raise ValueError("--method words needs words: --classes, or --open-world")
        return lambda rgb: by_words(predictor, rgb, vocabulary)
    if method == "everything":
        return lambda rgb: by_clicks(predictor, rgb)
    raise ValueError(f"method {method!r} is not known: {', '.join(METHODS)}")


def by_words(predictor: Predictor, rgb: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Each name's part of the label map, counted from 1; background words are the rest."""
    found = predictor(rgb, vocabulary)
    return found.labels + (found.classes[0] != NONE), found.score


def by_clicks(predictor: Predictor, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The masks of `everything`; weights trained with prompts are needed."""
    proposals = generate_masks(predictor.set_image(rgb))
    masks = np.stack([p.mask for p in proposals]) if proposals else np.zeros((0, *rgb.shape[:2]), bool)
    return paint_masks(masks, np.array([p.iou_pred for p in proposals]), rgb.shape[:2])


def propose(work: WorkFolder, find: Proposer, *, least: int = 100) -> list[dict]:
    """Write regions of each kept tile that has none yet.

    Args:
        least: pixels; smaller pieces go to the neighbour they share most border with.

    Returns:
        {"tile", "error"} of tiles that could not be read.
    """
    if least < 1:
        raise ValueError(f"--least {least} is out of range: 1 pixel at least")
    errors = []
    for row in tqdm(work.kept(), unit="tile", desc="propose"):
        done = work / f"regions/{row['tile']}.json"
        if done.is_file():
            continue
        try:
            rgb = work.image(row)
        except (ImageError, FileNotFoundError) as error:
            errors.append({"tile": row["tile"], "error": str(error)})
            continue
        labels, score = find(rgb)
        regions = tidy(labels, least)
        write_map(work / f"regions/{row['tile']}.png", regions)
        write_json(done, described(regions, score))
    return errors


def described(regions: np.ndarray, score: np.ndarray) -> list[dict]:
    """One entry a region but the rest: {"region", "box" (half-open XYXY), "pixels", "score"}."""
    ids, place = np.unique(regions, return_inverse=True)
    place = place.ravel()
    pixels = np.bincount(place)
    means = np.bincount(place, np.clip(score, 0, 1).ravel()) / pixels
    y, x = np.divmod(np.arange(regions.size), regions.shape[1])
    low, high = np.full((len(ids), 2), regions.size), np.full((len(ids), 2), -1)
    for axis, values in enumerate((x, y)):
        np.minimum.at(low[:, axis], place, values)
        np.maximum.at(high[:, axis], place, values)
    rows = zip(ids.tolist(), low.tolist(), high.tolist(), pixels.tolist(), means.tolist())
    return [
        {"region": k, "box": [*first, *(v + 1 for v in last)], "pixels": n, "score": round(mean, 4)}
        for k, first, last, n, mean in rows
        if k
    ]
