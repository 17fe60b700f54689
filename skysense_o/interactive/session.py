"""One user's work on one image: the features, the latest answers, and a folder that is deleted with the session.

Shape letters: C classes, K regions, H W pixels.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from skysense_o.image_io import RGBImage, gdal_settings
from skysense_o.inference.automatic_masks import Proposal, generate_masks
from skysense_o.inference.drawing import Color
from skysense_o.inference.export import palette_of
from skysense_o.inference.predictor import Predictor
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.inference.segmentation import Segmentation
from skysense_o.interactive.closing import Closable
from skysense_o.interactive.current_request import check_time, report_progress
from skysense_o.interactive.opening import OpenedImage
from skysense_o.interactive.region import Prompt, Region
from skysense_o.vocabulary import Vocabulary

if TYPE_CHECKING:
    from skysense_o.interactive.map_view import MapView
    from skysense_o.scenes.pixel_area import PixelAreas

MOST_VALUES = 100_000_000
"""Limit of the bytes of all proposals' masks, and limit of the number of exported probabilities."""


MOST_UNDO = 100
"""Number of clicks and boxes that can be undone."""


class Session(Closable):
    """An image, its features, and the latest answers. `close` deletes its folder.

    Nothing of shape (C,H,W) or (K,H,W) is kept.

    Args:
        predictor: the model.
        image: the image.
        folder: folder for the session's files; None: a new temporary folder.
    """

    def __init__(self, predictor: Predictor, image: OpenedImage, folder: Path | None = None) -> None:
        self.predictor, self.image, self.file_name = predictor, image, image.name
        shown = RGBImage(image.rgb, image.valid).filled(predictor.fill)
        self.seen = PromptedImage(predictor.model, shown, self._in_precision, image.valid)
        self.folder = folder or Path(tempfile.mkdtemp(prefix="session_"))
        self.folder.mkdir(exist_ok=True)
        self.lock = threading.Lock()
        """Held by a request while it works on the session."""
        super().__init__()
        self.map: MapView | None = None
        """The map of the image; None if its location on the ground is unknown."""
        self.found: Segmentation | None = None
        self.region: Region | None = None
        self._before: list[Prompt] = []
        self.proposal_labels: np.ndarray | None = None
        """(H,W) indices of the proposals from 1, 0 for none; where they overlap the smaller one is shown."""
        self.examples: dict[str, Tensor] = {}
        self.colors: dict[str, Color] = {}

    def _in_precision(self) -> AbstractContextManager:
        check_time()
        return self.predictor.in_precision()

    def _free(self) -> None:
        if self.map is not None:
            self.map.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.seen = self.found = self.region = self.proposal_labels = self.image = self.map = None
        self.examples = {}

    @property
    def nbytes(self) -> int:
        """Memory of the image, its features and the answers, in bytes."""
        seen, image, found = self.seen, self.image, self.found
        kept = [self.proposal_labels, self.region and self.region.mask, *self.examples.values()]
        kept += [image and image.rgb, image and image.valid, found and found.labels, found and found.score]
        kept += [
            seen and seen.dense,
            seen and seen.image_embedding,
            *(seen.class_maps.arrays if seen and seen.class_maps else ()),
        ]
        return sum(_nbytes(value) for value in kept)

    @property
    def palette(self) -> list[Color]:
        """A colour per class of `found`: the user's own if one was given."""
        return self._palette(self.found)

    def _palette(self, found: Segmentation) -> list[Color]:
        colors = palette_of(found.classes, has_none=found.has_none)
        return [self.colors.get(name, color) for name, color in zip(found.classes, colors)]

    def segment(
        self,
        words: Sequence[str] = (),
        background: Sequence[str] = (),
        threshold: float | None = None,
        colors: dict[str, Color] | None = None,
    ) -> Segmentation:
        """Segment words and the examples so far.

        Args:
            words: classes; synonyms are separated by bars.
            background: words for everything else, which gets no mask.
            threshold: 0..1; pixels with a lower score get no mask.
            colors: class -> RGB.

        Raises:
            ValueError: there is neither a word nor an example; `Vocabulary.of` refuses a word; or the threshold is out
                of range.
        """
        if words or not self.examples:
            vocabulary = Vocabulary.of(words, background)
        else:
            rest = Vocabulary.of(background) if background else Vocabulary((), (), ())
            vocabulary = replace(rest, background=(True,) * len(rest))
        vocabulary = vocabulary.with_examples(self.examples)
        found = self.predictor(self.seen, vocabulary, threshold=threshold)
        self.found = replace(found, labels=found.labels.astype(np.min_scalar_type(found.nodata)))
        self.colors = dict(colors or {})
        return self.found

    def probabilities(self) -> np.ndarray | None:
        """(C,H,W) float32 of the latest classes, computed again; None if they do not fit in memory."""
        found = self.found
        if len(found.vocabulary) * found.labels.size > MOST_VALUES:
            return None
        return self.predictor(self.seen, found.vocabulary, threshold=found.threshold, probabilities=True).probabilities

    def click(self, x: float, y: float, inside: bool = True) -> Region:
        """Add a point to the region; the first point begins one.

        Args:
            x, y: pixel of the image.
            inside: True for a foreground point, False for a background point.

        Raises:
            ValueError: see `PromptedImage.prompt`; or the point is a background point, and there is no region.
        """
        return self._select(self._with_point(x, y, inside))

    def draw_box(self, x0: float, y0: float, x1: float, y1: float) -> Region:
        """Begin a region: the mask for a half-open XYXY box, or the box itself if the weights take no prompts."""
        return self._select(Prompt(box=(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))))

    def preview_click(self, x: float, y: float, inside: bool = True) -> np.ndarray:
        """The mask bool (H,W) that `click` would give; nothing changes."""
        return self._predict(self._with_point(x, y, inside))[0]

    def preview_box(self, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        """The mask bool (H,W) that `draw_box` would give; nothing changes."""
        return self._predict(Prompt(box=(x0, y0, x1, y1)))[0]

    def undo(self) -> Region | None:
        """Undo the latest click or box; returns the region before that click or box, or None.

        Raises:
            ValueError: there is nothing to undo.
        """
        if not self._before:
            raise ValueError("nothing to undo")
        prompt = self._before.pop()
        self.region = Region(*self._predict(prompt), prompt) if prompt else None
        return self.region

    @property
    def can_undo(self) -> bool:
        """Whether there is a click or box to undo."""
        return bool(self._before)

    def _with_point(self, x: float, y: float, inside: bool) -> Prompt:
        if self.region is None and not inside:
            raise ValueError("there is no region to remove from: first select one by a foreground click or a box")
        old = self.region.prompt if self.region is not None else Prompt()
        return Prompt((*old.points, (x, y)), (*old.labels, int(inside)), old.box)

    def _select(self, prompt: Prompt) -> Region:
        region = Region(*self._predict(prompt), prompt)
        self._before = [*self._before[1 - MOST_UNDO :], self.region.prompt if self.region else Prompt()]
        self.region = region
        return region

    def _predict(self, prompt: Prompt) -> tuple[np.ndarray, float | None]:
        """Predict the mask for clicks or a box, and its IoU, or None if no IoU is predicted."""
        if self.seen.takes_prompts or prompt.points:
            return self.seen.prompt(prompt.points, prompt.labels, prompt.box)
        return self.seen.box_mask(prompt.box), None

    def clear(self) -> None:
        """Forget the region, the examples and the proposals; the segmentation stays."""
        self.deselect()
        self.examples, self.proposal_labels = {}, None

    def deselect(self) -> None:
        """Forget the region, with its clicks and boxes, so that none can be undone."""
        self.region, self._before = None, []

    def naming(self, vocabulary: Vocabulary) -> Vocabulary | None:
        """The classes to name regions with: the given vocabulary.

        SAM 3 would have to decode a mask for each class, so it gets the classes of the latest segmentation, or None.
        """
        if self.seen.has_region_vectors:
            return vocabulary
        return self.found.vocabulary if self.found else None

    def name(self, vocabulary: Vocabulary | None, top: int = 5) -> list[tuple[str, float]]:
        """(class, cosine) pairs for the region, best first; no pairs without a vocabulary.

        Raises:
            ValueError: there is no region, or it is empty.
        """
        mask = self._mask()[None]
        return self.seen.name(mask, vocabulary, top)[0] if vocabulary else []

    def add_example(self) -> str:
        """Make the region a class for the next `segment`; returns the name of the class.

        Raises:
            ValueError: there is no region, or it is empty.
        """
        name = f"like region {len(self.examples) + 1}"
        self.examples[name] = self.seen.embed(self._mask()[None])[0]
        return name

    def find_all_regions(self, vocabulary: Vocabulary | None, **options) -> list[Proposal]:
        """Find regions without words; see `generate_masks`. The session keeps only their `proposal_labels`."""
        most = max(1, min(100, MOST_VALUES // (self.seen.size[0] * self.seen.size[1])))
        proposals = generate_masks(self.seen, vocabulary, **{"most": most, "progress": report_progress, **options})
        labels = np.zeros(self.seen.size, np.min_scalar_type(len(proposals)))
        for _, i in sorted(((int(p.mask.sum()), i) for i, p in enumerate(proposals)), reverse=True):
            labels[proposals[i].mask] = i + 1
        self.proposal_labels = labels
        return proposals

    def _mask(self) -> np.ndarray:
        if self.region is None:
            raise ValueError("no region yet: click on one or draw a box first")
        if not self.region.mask.any():
            raise ValueError("the region is empty: click elsewhere, or draw another box")
        return self.region.mask

    def rows(self) -> list[dict]:
        """One row per class: id, name, pixels, share of the valid pixels, area_m2 or None, color."""
        found, valid = self.found, self.image.valid  # read once, because a running request may replace `self.found`
        rows = found.areas()
        inside = np.ones(found.labels.shape, bool) if valid is None else valid
        areas = self._square_metres(found, inside)
        pixels = np.bincount(found.labels[inside], minlength=len(rows))
        for row, count, area, color in zip(rows, pixels.tolist(), areas, self._palette(found)):
            row.update(pixels=count, share=count / max(1, int(inside.sum())), area_m2=area, color=color)
        return [row for row in rows if row["id"] or not found.has_none or row["pixels"]]

    def _square_metres(self, found: Segmentation, inside: np.ndarray) -> list[float | None]:
        """Square metres per class; None if unknown."""
        classes = len(found.classes)
        if self.areas is None:
            return [None] * classes
        y, x = np.nonzero(inside)
        return np.bincount(found.labels[y, x], self.areas.at(y, x), classes).tolist()

    @cached_property
    def areas(self) -> PixelAreas | None:
        """Areas of the pixels on the ground; None where they are unknown."""
        if self.image.scene is None:
            return None
        from skysense_o.scenes.raster import Raster

        with gdal_settings(), Raster(self.image.scene) as raster:
            return raster.areas if raster.areas.known else None


def _nbytes(value) -> int:
    """Bytes of an array or tensor, or of all arrays and tensors inside a dict, a sequence or an object."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.nbytes
    if isinstance(value, (list, tuple)):
        return sum(map(_nbytes, value))
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    return sum(map(_nbytes, vars(value).values())) if hasattr(value, "__dict__") else 0
