"""Images in memory, of any size, through sliding windows. Alphabet: H W pixels, C classes."""

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
BATCH = {"cpu": 1}
OTHER_BATCH = 8
"""Windows at a time: one keeps a CPU busy, a GPU wants more."""
BYTES_A_PIXEL, BYTES_A_NUMBER = 400, 40
"""Of a window that is under way, about; a number is one of a name in a cell. Seen with the mini model: 100 names and
512 x 512 pixels take 0.1 to 0.2 GiB."""
LARGE = 10**8
"""Parameters of a model whose layers keep all cores busy by themselves, and whose windows take far more memory."""


def plan_windows(
    model: SkySenseO,
    size: tuple[int, int],
    num_classes: int,
    window: int | None = None,
    overlap: int | None = None,
    memory: int = MEMORY,
    target: tuple[int, int] | None = None,
) -> Plan:
    """The windows in which a model sees an image of `size`; see `Plan.of`.

    window: pixels; the tower's square where it has one, else 512. overlap: pixels; a quarter of the window. memory:
    bytes beside the weights.

    Raises:
        ValueError: another window than the tower's square; and what `Plan.of` says.
    """
    square, divisor = model.tower.input_size, model.tower.divisor
    if square and window not in (None, square):
        raise ValueError(f"a window of {window} pixels does not fit the model: its own is {square}")
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


def ask_windows(model: nn.Module, vocabulary: Vocabulary, overview: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
    """What gives the probabilities of one image's windows: uint8 (B,3,h,w) -> (B,C,h',w').

    overview: gives the whole image, uint8 (3,H,W), at any scale; called only for a model that judges on the whole image
    which phrases are present (`Sam3.image_presence`).
    """
    judge = getattr(model, "image_presence", None)
    presence = {} if judge is None else {"presence": judge(overview, vocabulary)}
    return partial(model.predict_windows, vocabulary=vocabulary, **presence)


def batch_size(device: torch.device) -> int:
    """How many windows to run at a time."""
    return BATCH.get(device.type, OTHER_BATCH)


def thread_count(model: SkySenseO, batch: int, plan: Plan, memory: int = MEMORY) -> int:
    """How many batches to run side by side: on a CPU one a core, where the model is small and a batch a single window,
    as far as a quarter of the memory goes."""
    size = sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0
    if model.device.type != "cpu" or batch > 1 or size > LARGE:
        return 1
    window, cells = plan.rows.window * plan.cols.window, plan.num_classes * (plan.rows.window // plan.rows.stride) ** 2
    return max(1, min(torch.get_num_threads(), memory // 4 // (BYTES_A_PIXEL * window + BYTES_A_NUMBER * cells)))


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
    """Segment an image window by window; memory does not grow with its pixels times the classes.

    Args:
        image: uint8 (3,H,W), RGB. window, overlap, memory: see `plan_windows`.
        probabilities: uint8 windows (B,3,h,w) -> (B,C,h',w'); `model.predict_windows` where None (a protocol may add
            flips or scales there).

    Returns:
        labels (H,W) uint8, or uint16 above 254 names: index of the best name; score (H,W) float32, its probability.
    """
    image = torch.as_tensor(image)
    height, width = image.shape[-2:]
    plan = plan_windows(model, (height, width), len(vocabulary), window, overlap, memory)
    labels = np.empty((height, width), np.uint8 if len(vocabulary) <= 254 else np.uint16)
    score = np.empty((height, width), np.float32)

    def write(rows: range, cols: range, ids: Tensor, best: Tensor) -> None:
        place = slice(rows.start, rows.stop), slice(cols.start, cols.stop)
        labels[place], score[place] = ids.numpy(), best.numpy()

    ask = probabilities or ask_windows(model, vocabulary, lambda: image)
    batch = batch or batch_size(model.device)
    with torch.inference_mode():
        for strip in plan.strips:
            columns = plan.cols.touching(plan.cols.span(strip))
            load = window_rows(plan, image, columns)
            run_windows(plan, strip, range(height), load, ask, write, batch, thread_count(model, batch, plan, memory))
    return labels, score


def window_rows(plan: Plan, image: Tensor, columns: Sequence[int]) -> Callable[[int], WindowRow]:
    """Cut the windows of an image in memory; where a window reaches outside, the image is reflected.

    Args:
        image: (3,H,W). columns: ascending indices of the plan's window columns.

    Returns:
        row index -> the windows of that row.
    """
    begin, end = plan.cols.starts[columns[0]], plan.cols.starts[columns[-1]] + plan.cols.window
    x = reflected(image.shape[-1], begin, end)

    def load(k: int) -> WindowRow:
        top = plan.rows.starts[k]
        y = reflected(image.shape[-2], top, top + plan.rows.window)
        return WindowRow(image[:, y][:, :, x], (True,) * len(columns))

    return load
