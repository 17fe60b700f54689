"""Evaluation protocols: input size, windows, test-time augmentation, thresholds.

A protocol is a YAML file in configs/protocols that changes keys of the config; TEST.PROTOCOL names it.

Shape letters: C classes, H W pixels, h w grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image
from torch import Tensor, nn

from skysense_o.geometry import ImageTransform
from skysense_o.inference.blending import sweep
from skysense_o.inference.sliding import (
    batch_size,
    plan_windows,
    segment_array,
    thread_count,
    window_probabilities,
    window_rows,
)
from skysense_o.inference.windows import Axis
from skysense_o.parallel import OrderedThreadPool
from skysense_o.sample import Sample
from skysense_o.shipped_files import shipped_file
from skysense_o.vocabulary import Vocabulary, read_retrieval_words

FOLDER = shipped_file("configs/protocols")
FLIPS = ((), (-1,), (-2,), (-2, -1))
WHOLE = 2**50  # bytes: no limit, because averaging views needs all classes of the whole image in memory


def protocol_file(name: str) -> Path:
    """The YAML file of a protocol, from its name or its path.

    Raises:
        FileNotFoundError: there is no such protocol; the message lists all names.
    """
    path = FOLDER / f"{name}.yaml"
    if path.is_file() or Path(name).is_file():
        return path if path.is_file() else Path(name)
    known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
    raise FileNotFoundError(
        f"TEST.PROTOCOL {name!r} is neither a file nor a protocol: choose one of {known}, or '' for whole images"
    )


@dataclass(frozen=True)
class Protocol:
    """How images are prepared for the model, and how its output becomes labels.

    Attributes:
        name: name of the protocol.
        short_side, long_side: sides in pixels to which images are resized, as Detectron2's ResizeShortestEdge does;
            short_side 0: not resized, long_side 0: no limit.
        window: side of sliding windows in pixels; 0: the whole image at once; -1: the model's default.
        overlap: overlap of windows in pixels; -1: a quarter of the window.
        scales: scales of test-time augmentation; the probabilities are averaged.
        flips: also average over the images mirrored horizontally, vertically and both ways.
        background: names of background classes.
        threshold: minimum probability of the best class; below it a pixel has no class.
        class_thresholds: (class, threshold) pairs that replace `threshold`.
        retrieval: file of retrieval words (further words for each class); {} stands for the name of the class table.
    """

    name: str = ""
    short_side: int = 0
    long_side: int = 0
    window: int = 0
    overlap: int = -1
    scales: tuple[float, ...] = (1.0,)
    flips: bool = False
    background: tuple[str, ...] = ()
    threshold: float = 0.0
    class_thresholds: tuple[tuple[str, float], ...] = ()
    retrieval: str = ""

    def __post_init__(self) -> None:
        thresholds = [self.threshold, *(t for _, t in self.class_thresholds)]
        if any(not 0 <= t <= 1 for t in thresholds):
            raise ValueError(f"TEST.THRESHOLD and CLASS_THRESHOLDS {thresholds} are out of range: 0 to 1")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"TEST.SCALES {list(self.scales)} are out of range: one or more, each above 0")

    @classmethod
    def from_config(cls, cfg) -> Protocol:
        t = cfg.TEST
        return cls(
            t.PROTOCOL,
            t.SHORT_SIDE,
            t.LONG_SIDE,
            t.WINDOW,
            t.OVERLAP,
            tuple(map(float, t.SCALES)),
            t.FLIPS,
            tuple(t.BACKGROUND),
            t.THRESHOLD,
            tuple((str(name), float(value)) for name, value in t.CLASS_THRESHOLDS),
            t.RETRIEVAL,
        )

    def words(self, vocabulary: Vocabulary, table: str) -> Vocabulary:
        """Add retrieval words and background classes to a vocabulary.

        Args:
            vocabulary: the classes of the data set.
            table: name of the class table.

        Raises:
            FileNotFoundError: there is no file of retrieval words for this class table.
        """
        if self.background:
            vocabulary = Vocabulary.of(vocabulary.phrases, self.background)
        if not self.retrieval:
            return vocabulary
        path = Path(self.retrieval.replace("{}", table))
        if not path.is_file():
            raise FileNotFoundError(
                f"TEST.RETRIEVAL {self.retrieval!r}: no file {str(path)!r}: give another, or '' for no retrieval words"
            )
        return vocabulary.with_words(read_retrieval_words(path))

    def labels(self, model: nn.Module, sample: Sample, rest: int | None = None) -> Tensor:
        """Predict the labels of one sample.

        Args:
            model: a SkySenseO in eval mode.
            sample: its vocabulary has C classes, then background classes.
            rest: label of background pixels and of pixels below the threshold; None: C.

        Returns:
            int64 (H,W), class indices or `rest`.
        """
        vocabulary = sample["vocabulary"]
        classes = len(vocabulary) - sum(vocabulary.background)
        best, score = self._best(model, sample)
        ids = torch.arange(len(vocabulary), device=best.device)
        ids[classes:] = classes if rest is None else rest
        by_name = dict(self.class_thresholds)
        thresholds = torch.tensor([by_name.get(c, self.threshold) for c in vocabulary.classes], device=best.device)
        labels = ids[best]
        if thresholds.any():
            labels[score < thresholds[best]] = classes if rest is None else rest
        return labels

    def _best(self, model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor]:
        """The index of the best class and its probability, each (H,W)."""
        image, vocabulary = sample["image"], sample["vocabulary"]
        size = tuple(image.shape[-2:])
        input_size = self._input_size(size)
        if self.flips or self.scales != (1.0,) or (self.window and input_size != size):
            grid = self._mean(model, image, vocabulary, input_size)
            out = ImageTransform(size, size, size).restore_probabilities(grid)
            return out["labels"], out["score"]
        if self.window:
            window, overlap = max(self.window, 0) or None, None if self.overlap < 0 else self.overlap
            labels, score = segment_array(image, vocabulary, model, window, overlap)
            return torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(score)
        resized = {"image": _resized(image, input_size), "vocabulary": vocabulary, "height": size[0], "width": size[1]}
        out = model.predict([resized], "labels")[0]
        return out["labels"], out["score"]

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if not self.short_side:
            return size
        longest = self.long_side or 2**30
        return tuple(max(1, n) for n in T.ResizeShortestEdge.get_output_shape(*size, self.short_side, longest))

    def _mean(self, model: nn.Module, image: Tensor, vocabulary: Vocabulary, size: tuple[int, int]) -> Tensor:
        """Probabilities (C,h,w) on the mask grid of the original image, averaged over scales and flips.

        Args:
            size: (height, width) of the input at scale 1.
        """
        grid = tuple(-(-side // model.stride) for side in image.shape[-2:])
        total, views = None, 0
        for scale in self.scales:
            scaled = _resized(image, tuple(max(1, round(side * scale)) for side in size))
            for axes in FLIPS if self.flips else FLIPS[:1]:
                view = self._view(model, scaled.flip(axes), vocabulary, grid).flip(axes)
                total, views = view if total is None else total.add_(view), views + 1
        return total / views

    def _view(self, model: nn.Module, image: Tensor, vocabulary: Vocabulary, grid: tuple[int, int]) -> Tensor:
        if not self.window:
            sample = {"image": image, "vocabulary": vocabulary, "height": grid[0], "width": grid[1]}
            return model.predict([sample], "probabilities")[0]["sem_seg"].float()
        window, overlap = max(self.window, 0) or None, None if self.overlap < 0 else self.overlap
        size = tuple(image.shape[-2:])
        plan = plan_windows(model, size, len(vocabulary), window, overlap, WHOLE, target=grid)
        predict, cells = window_probabilities(model, vocabulary, lambda: image), None
        load, batch = window_rows(plan, image, range(len(plan.cols.starts))), batch_size(model.device)
        with OrderedThreadPool(predict, thread_count(model, batch, plan)) as pool:
            for band in sweep(plan, plan.strips[0], range(grid[0]), load, pool, batch):
                if cells is None:
                    cells = band.grid.new_zeros(plan.rows.cells, band.grid.shape[1], band.grid.shape[2])
                cells[band.top : band.top + len(band.grid)] = band.grid
        return _between(_between(cells, plan.rows, 0), plan.cols, 1).permute(2, 0, 1)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 (3,H,W) with Pillow's bilinear filter, as Detectron2 does."""
    if tuple(image.shape[-2:]) == size:
        return image
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _between(cells: Tensor, axis: Axis, dim: int) -> Tensor:
    """Interpolate the cells along one axis linearly at the pixels of the axis's target size."""
    cell, share = axis.position(torch.arange(axis.target))
    cell, share = cell.to(cells.device), share.to(cells.device).view([-1 if d == dim else 1 for d in range(3)])
    after = (cell + 1).clamp(max=cells.shape[dim] - 1)
    return torch.lerp(cells.index_select(dim, cell), cells.index_select(dim, after), share)
