"""Segment images of any size in memory with sliding windows.

Shape letters: H W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from skysense_o.inference.blending import WindowRow, reflected, run_windows
from skysense_o.inference.windows import OVERLAP, WINDOW, Plan
from skysense_o.meta_arch import SkySenseO
from skysense_o.vocabulary import Vocabulary

MEMORY = 2 * 2**30
"""Default limit, in bytes, of the memory used beyond the weights."""
BATCH = {"cpu": 1}
OTHER_BATCH = 8
"""Windows per call of the model on a GPU. One window is enough to occupy a CPU, but not a GPU."""
BYTES_PER_PIXEL, BYTES_PER_PROBABILITY = 400, 40
"""Approximate bytes that the model needs for a window: per pixel, and per class and cell of the mask grid. Measured
with the mini model: a window of 512 x 512 pixels and 100 classes takes 0.1 to 0.2 GiB."""
LARGE = 10**8
"""Models with more parameters run one window at a time: their layers occupy all cores, and need far more memory."""


def plan_windows(
    model: SkySenseO,
    size: tuple[int, int],
    num_classes: int,
    window: int | None = None,
    overlap: int | None = None,
    memory: int = MEMORY,
    target: tuple[int, int] | None = None,
) -> Plan:
    """Divide an image into windows for a model.

    Args:
        size: (H,W) that the model sees.
        num_classes: C.
        window: in pixels; None for the fixed input size of the tower, or else 512.
        overlap: in pixels; None for a quarter of the window.
        memory: bytes that may be used beyond the weights.
        target: (H,W) of the result; None for `size`.

    Raises:
        ValueError: the window is not the fixed input size of the tower, or `Plan.of` refuses it.
    """
    square, divisor = model.tower.input_size, model.tower.divisor
    if square and window not in (None, square):
        raise ValueError(f"a window of {window} pixels does not fit the model: it takes {square} pixels only")
    window = window or square or WINDOW
    step = model.stride if square else divisor
    overlap = int(window * OVERLAP) // step * step if overlap is None else overlap
    return Plan.of(
        size,
        window=window,
        overlap=overlap,
        divisor=divisor,
        stride=model.stride,
        num_classes=num_classes,
        memory=memory,
        fixed=bool(square),
        target=target,
    )


def window_probabilities(
    model: nn.Module, vocabulary: Vocabulary, overview: Callable[[], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return a function that predicts one image's windows: uint8 (B,3,h,w) -> probabilities (B,C,h',w').

    Args:
        overview: returns the whole image, uint8 (3,H,W), at any scale. It is only called for a model that decides on
            the whole image which phrases are present (`Sam3.image_presence`).
    """
    judge = getattr(model, "image_presence", None)
    presence = {} if judge is None else {"presence": judge(overview, vocabulary)}
    return partial(model.predict_windows, vocabulary=vocabulary, **presence)


def batch_size(device: torch.device) -> int:
    """Number of windows per call of the model."""
    return BATCH.get(device.type, OTHER_BATCH)


def thread_count(model: SkySenseO, batch: int, plan: Plan, memory: int = MEMORY) -> int:
    """Number of windows to run in parallel.

    A small model on a CPU runs one window per core, within a quarter of the memory. A large model, or a GPU, runs one
    window at a time.
    """
    size = sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0
    if model.device.type != "cpu" or batch > 1 or size > LARGE:
        return 1
    pixels, cells = plan.rows.window * plan.cols.window, (plan.rows.window // plan.rows.stride) ** 2
    bytes_per_window = BYTES_PER_PIXEL * pixels + BYTES_PER_PROBABILITY * plan.num_classes * cells
    return max(1, min(torch.get_num_threads(), memory // 4 // bytes_per_window))


def segment_array(
    image: np.ndarray | Tensor,
    vocabulary: Vocabulary,
    model: SkySenseO,
    window: int | None = None,
    overlap: int | None = None,
    memory: int = MEMORY,
    probabilities: Callable[[Tensor], Tensor] | None = None,
    batch: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Segment an image of any size window by window. No array of (C,H,W) is allocated.

    Args:
        image: uint8 (3,H,W), RGB.
        vocabulary: C classes.
        model: in eval mode.
        window, overlap, memory: see `plan_windows`.
        probabilities: windows uint8 (B,3,h,w) -> probabilities (B,C,h',w'); None for `model.predict_windows`. An
            evaluation protocol may flip or scale the windows here.
        batch: windows per call of the model; None for 1 on a CPU, 8 on a GPU.

    Returns:
        labels (H,W) uint8, or uint16 for more than 254 classes: index of the best class per pixel;
        score (H,W) float32: its probability.

    Raises:
        ValueError: see `plan_windows`.

    >>> from skysense_o import Predictor
    >>> predictor, vocabulary = Predictor.from_pretrained("mini", device="cpu"), Vocabulary.parse("road,tree")
    >>> labels, score = segment_array(np.zeros((3, 70, 90), np.uint8), vocabulary, predictor.model, window=64)
    >>> labels.shape, str(labels.dtype), str(score.dtype)
    ((70, 90), 'uint8', 'float32')
    """
    image = torch.as_tensor(image)
    height, width = image.shape[-2:]
    plan = plan_windows(model, (height, width), len(vocabulary), window, overlap, memory)
    labels = np.empty((height, width), np.uint8 if len(vocabulary) <= 254 else np.uint16)
    score = np.empty((height, width), np.float32)

    def write(rows: range, cols: range, ids: Tensor, best: Tensor) -> None:
        block = slice(rows.start, rows.stop), slice(cols.start, cols.stop)
        labels[block], score[block] = ids.numpy(), best.numpy()

    predict = probabilities or window_probabilities(model, vocabulary, lambda: image)
    batch = batch or batch_size(model.device)
    with torch.inference_mode():
        for strip in plan.strips:
            columns = plan.cols.touching(plan.cols.span(strip))
            load = window_rows(plan, image, columns)
            threads = thread_count(model, batch, plan, memory)
            run_windows(plan, strip, range(height), load, predict, write, batch, threads)
    return labels, score


def window_rows(plan: Plan, image: Tensor, columns: Sequence[int]) -> Callable[[int], WindowRow]:
    """Cut the windows of an image in memory. Beyond its edges, the image is continued by its reflection.

    Args:
        image: (3,H,W). columns: ascending indices of the plan's window columns.

    Returns:
        Function: index of a row of windows -> the pixels of that row.
    """
    begin, end = plan.cols.starts[columns[0]], plan.cols.starts[columns[-1]] + plan.cols.window
    x = reflected(image.shape[-1], begin, end)

    def load(k: int) -> WindowRow:
        top = plan.rows.starts[k]
        y = reflected(image.shape[-2], top, top + plan.rows.window)
        return WindowRow(image[:, y][:, :, x], (True,) * len(columns))

    return load
