"""One person's work on one image: what was asked of it, what was found, and a folder that goes when they go."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from skysense_o.clicks import box_between
from skysense_o.image_io import RGBImage, gdal_settings
from skysense_o.inference.automatic_masks import Proposal, generate_masks
from skysense_o.inference.drawing import Color
from skysense_o.inference.export import palette_of
from skysense_o.inference.predictor import Predictor
from skysense_o.inference.prompted_image import PromptedImage
from skysense_o.inference.segmentation import NONE, Segmentation
from skysense_o.interactive.opening import OpenedImage
from skysense_o.vocabulary import Vocabulary


@dataclass
class Region:
    """What the latest clicks or box mean. mask: bool (H,W). iou_pred: its predicted IoU; None where the box itself is
    the region, as with weights that take words only. points, labels, box: what was asked.
    """

    mask: np.ndarray
    iou_pred: float | None
    points: list[tuple[float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None


class Session:
    """An image, its features, and the latest answers. Close it, so that its folder goes."""

    def __init__(self, predictor: Predictor, image: OpenedImage, root: Path | None = None) -> None:
        """root: where its folder is made; the system's place for temporary files where None."""
        self.predictor, self.image = predictor, image
        shown = RGBImage(image.rgb, image.valid).filled(predictor.fill)
        self.seen = PromptedImage(predictor.model, shown, predictor.in_precision, image.valid)
        self.folder = Path(tempfile.mkdtemp(prefix="session_", dir=root))
        self.found: Segmentation | None = None
        self.region: Region | None = None
        self.corner: tuple[float, float] | None = None
        self.proposals: list[Proposal] = []
        self.examples: dict[str, Tensor] = {}
        self.colors: dict[str, Color] = {}

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def palette(self) -> list[Color]:
        """A colour for each id of what was found: the person's own where one was given."""
        classes = self.found.classes
        return [self.colors.get(name, color) for name, color in zip(classes, palette_of(classes))]

    def segment(
        self,
        words: Sequence[str] = (),
        background: Sequence[str] = (),
        threshold: float | None = None,
        colors: dict[str, Color] | None = None,
    ) -> Segmentation:
        """Masks of words and of the examples so far.

        Raises:
            ValueError: neither a word nor an example; words as `Vocabulary.of` refuses them; a threshold outside 0..1.
        """
        if words or not self.examples:
            vocabulary = Vocabulary.of(words, background)
        else:
            rest = Vocabulary.of(background) if background else Vocabulary((), (), ())
            vocabulary = replace(rest, background=(True,) * len(rest))
        vocabulary = vocabulary.with_examples(self.examples)
        self.found = self.predictor(self.seen, vocabulary, threshold=threshold, probabilities=len(vocabulary) <= 32)
        self.colors = dict(colors or {})
        return self.found

    def click(self, x: float, y: float, inside: bool = True) -> Region:
        """One click more on the same region; the first one begins it.

        Raises:
            ValueError: see `PromptedImage.prompt`.
        """
        old = self.region if self.region is not None and self.region.iou_pred is not None else None
        points = [*(old.points if old else []), (x, y)]
        labels = [*(old.labels if old else []), int(inside)]
        mask, iou_pred = self.seen.prompt(points, labels, old.box if old else None)
        self.region = Region(mask, iou_pred, points, labels, old.box if old else None)
        return self.region

    def draw_box(self, x0: float, y0: float, x1: float, y1: float) -> Region:
        """Begin a region by a half-open XYXY box: its mask, or the box itself with weights that take words only."""
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if self.seen.takes_prompts:
            mask, iou_pred = self.seen.prompt(box=box)
        else:
            mask, iou_pred = self.seen.box_mask(box), None
        self.region = Region(mask, iou_pred, box=box)
        return self.region

    def corner_at(self, x: float, y: float) -> Region | None:
        """One corner of a box, or the second: then the region is drawn."""
        if self.corner is None:
            self.region, self.corner = None, (x, y)
            return None
        first, self.corner = self.corner, None
        return self.draw_box(*box_between(first, (x, y)))

    def clear(self) -> None:
        """Forget the region, the examples and the proposals; what was found stays."""
        self.region, self.corner, self.examples, self.proposals = None, None, {}, []

    def name(self, vocabulary: Vocabulary, top: int = 5) -> list[tuple[str, float]]:
        """(name, cosine) pairs for the region, best first.

        Raises:
            ValueError: no region, or an empty one.
        """
        return self.seen.name(self._mask()[None], vocabulary, top)[0]

    def add_example(self) -> str:
        """Make the region a class of its own for the next `segment`; the name it goes by.

        Raises:
            ValueError: no region, or an empty one.
        """
        name = f"like region {len(self.examples) + 1}"
        self.examples[name] = self.seen.embed(self._mask()[None])[0]
        return name

    def find_all_regions(self, vocabulary: Vocabulary, **limits) -> list[Proposal]:
        """Regions without a word; see `everything`."""
        self.proposals = generate_masks(self.seen, vocabulary, **limits)
        return self.proposals

    def proposal_labels(self) -> np.ndarray:
        """(H,W) numbers of the proposals from 1, 0 for none; where they overlap the smaller one is seen."""
        labels = np.zeros(self.seen.size, np.int32)
        for _, i in sorted(((int(p.mask.sum()), i) for i, p in enumerate(self.proposals)), reverse=True):
            labels[self.proposals[i].mask] = i + 1
        return labels

    def _mask(self) -> np.ndarray:
        if self.region is None:
            raise ValueError("no region yet: click on one or draw a box first")
        if not self.region.mask.any():
            raise ValueError("the region is empty: click elsewhere, or draw another box")
        return self.region.mask

    def rows(self) -> list[dict]:
        """One row a class: id, name, pixels, share of the valid pixels, area_m2 or None, color."""
        found, valid = self.found, self.image.valid
        rows = found.areas()
        inside = np.ones(found.labels.shape, bool) if valid is None else valid
        ground = self._ground(inside)
        pixels = np.bincount(found.labels[inside], minlength=len(rows))
        for row, count, area, color in zip(rows, pixels.tolist(), ground, self.palette):
            row.update(pixels=count, share=count / max(1, int(inside.sum())), area_m2=area, color=color)
        return [row for row in rows if row["name"] != NONE or row["pixels"]]

    def _ground(self, inside: np.ndarray) -> list[float | None]:
        """Square metres of each id; None where they are not known."""
        classes = len(self.found.classes)
        if self.image.scene is None:
            return [None] * classes
        from skysense_o.scenes.raster import Raster

        with gdal_settings(), Raster(self.image.scene) as raster:
            areas = raster.areas
        if not areas.known:
            return [None] * classes
        y, x = np.nonzero(inside)
        return np.bincount(self.found.labels[y, x], areas.at(y, x), classes).tolist()
