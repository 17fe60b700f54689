"""How an image is shown to the model and what counts as its answer. Alphabet: C classes, H W pixels, h w grid.

A protocol is a small YAML below configs/protocols, a change of the config like any other; TEST.PROTOCOL names it.
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
from skysense_o.inference.blending import WindowRow, reflected, sweep
from skysense_o.inference.sliding import ask_windows, batch_size, plan_windows, segment_array, thread_count
from skysense_o.inference.windows import Axis
from skysense_o.parallel import OrderedThreadPool
from skysense_o.sample import Sample
from skysense_o.vocabulary import Vocabulary, read_retrieval_words

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "protocols"
FLIPS = ((), (-1,), (-2,), (-2, -1))
WHOLE = 2**50  # bytes: where all classes are averaged over views, one strip holds the whole image


def protocol_file(name: str) -> Path:
    """The YAML of a protocol, by its name or its path.

    Raises:
        FileNotFoundError: neither; lists the classes.
    """
    path = FOLDER / f"{name}.yaml"
    if path.is_file() or Path(name).is_file():
        return path if path.is_file() else Path(name)
    known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
    raise FileNotFoundError(f"TEST.PROTOCOL {name!r} is no file and no name: {known}; empty: whole images")


@dataclass(frozen=True)
class Protocol:
    """short_side, long_side: pixels an image is resized to, as Detectron2 does; 0: as it is. window: side of the
    sliding windows; 0: the whole image at once, -1: the model's own. overlap: pixels; -1: a quarter. scales, flips:
    views whose probabilities are averaged. background: words for the rest. threshold: probability that the best name
    needs; class_thresholds: the same for single names. retrieval: file of further words; {} is the class table's name.
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
        """The vocabulary with the retrieval words of its names and, at its end, the background words.

        Raises:
            FileNotFoundError: no file of retrieval words for this class table.
        """
        if self.background:
            vocabulary = Vocabulary.of(vocabulary.phrases, self.background)
        if not self.retrieval:
            return vocabulary
        path = Path(self.retrieval.replace("{}", table))
        if not path.is_file():
            raise FileNotFoundError(f"TEST.RETRIEVAL {self.retrieval!r}: no file {str(path)!r}; empty: no such words")
        return vocabulary.with_words(read_retrieval_words(path))

    def labels(self, model: nn.Module, sample: Sample, rest: int | None = None) -> Tensor:
        """(H,W) int64: ids of the C requested classes, or `rest` (C where None) for none of them."""
        vocabulary = sample["vocabulary"]
        classes = len(vocabulary) - sum(vocabulary.background)
        found, score = self._best(model, sample)
        ids = torch.arange(len(vocabulary), device=found.device)
        ids[classes:] = classes if rest is None else rest
        by_name = dict(self.class_thresholds)
        least = torch.tensor([by_name.get(name, self.threshold) for name in vocabulary.classes], device=found.device)
        folded = ids[found]
        if least.any():
            folded[score < least[found]] = classes if rest is None else rest
        return folded

    def _best(self, model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor]:
        """The best name and its probability, each (H,W)."""
        image, vocabulary = sample["image"], sample["vocabulary"]
        size = tuple(image.shape[-2:])
        shown = self._shown(size)
        if self.flips or self.scales != (1.0,) or (self.window and shown != size):
            grid = self._mean(model, image, vocabulary, shown)
            whole = ImageTransform(size, size, size)
            out = whole.restore_probabilities(grid)
            return out["labels"], out["score"]
        if self.window:
            window, overlap = max(self.window, 0) or None, None if self.overlap < 0 else self.overlap
            labels, score = segment_array(image, vocabulary, model, window, overlap)
            return torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(score)
        asked = {"image": _resized(image, shown), "vocabulary": vocabulary, "height": size[0], "width": size[1]}
        out = model.predict([asked], "labels")[0]
        return out["labels"], out["score"]

    def _shown(self, size: tuple[int, int]) -> tuple[int, int]:
        if not self.short_side:
            return size
        longest = self.long_side or 2**30
        return tuple(max(1, n) for n in T.ResizeShortestEdge.get_output_shape(*size, self.short_side, longest))

    def _mean(self, model: nn.Module, image: Tensor, vocabulary: Vocabulary, shown: tuple[int, int]) -> Tensor:
        """(C,h,w) probabilities at the masks' grid of the image itself, the mean over the views."""
        grid = tuple(-(-side // model.stride) for side in image.shape[-2:])
        total, views = None, 0
        for scale in self.scales:
            scaled = _resized(image, tuple(max(1, round(side * scale)) for side in shown))
            for axes in FLIPS if self.flips else FLIPS[:1]:
                found = self._view(model, scaled.flip(axes), vocabulary, grid).flip(axes)
                total, views = found if total is None else total.add_(found), views + 1
        return total / views

    def _view(self, model: nn.Module, image: Tensor, vocabulary: Vocabulary, grid: tuple[int, int]) -> Tensor:
        if not self.window:
            asked = {"image": image, "vocabulary": vocabulary, "height": grid[0], "width": grid[1]}
            return model.predict([asked], "probabilities")[0]["sem_seg"].float()
        window, overlap = max(self.window, 0) or None, None if self.overlap < 0 else self.overlap
        size = tuple(image.shape[-2:])
        plan = plan_windows(model, size, len(vocabulary), window, overlap, WHOLE, target=grid)
        ask, cells = ask_windows(model, vocabulary, lambda: image), None
        load, batch = _rows(plan.rows, plan.cols, image), batch_size(model.device)
        with OrderedThreadPool(ask, thread_count(model, batch, plan)) as pool:
            for band in sweep(plan, plan.strips[0], range(grid[0]), load, pool, batch):
                if cells is None:
                    cells = band.grid.new_zeros(plan.rows.cells, band.grid.shape[1], band.grid.shape[2])
                cells[band.top : band.top + len(band.grid)] = band.grid
        return _between(_between(cells, plan.rows, 0), plan.cols, 1).permute(2, 0, 1)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3,H,W) resized by Pillow's bilinear filter, as Detectron2 resizes images."""
    if tuple(image.shape[-2:]) == size:
        return image
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _rows(rows: Axis, cols: Axis, image: Tensor):
    x = reflected(image.shape[-1], cols.starts[0], cols.starts[-1] + cols.window)

    def load(k: int) -> WindowRow:
        y = reflected(image.shape[-2], rows.starts[k], rows.starts[k] + rows.window)
        return WindowRow(image[:, y][:, :, x], (True,) * len(cols.starts))

    return load


def _between(cells: Tensor, axis: Axis, dim: int) -> Tensor:
    """Cells along one axis -> the pixels of its target, bilinear."""
    cell, share = axis.position(torch.arange(axis.target))
    cell, share = cell.to(cells.device), share.to(cells.device).view([-1 if d == dim else 1 for d in range(3)])
    after = (cell + 1).clamp(max=cells.shape[dim] - 1)
    return torch.lerp(cells.index_select(dim, cell), cells.index_select(dim, after), share)
