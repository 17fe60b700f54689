"""Metrics from a confusion matrix.

Shape letters: C classes; rows are the truth, columns the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def confusion(truth: Tensor, prediction: Tensor, classes: int, ignore: int) -> Tensor:
    """Count pixels per true and predicted class.

    Args:
        truth: (H,W) class indices, or `ignore` for pixels that are left out.
        prediction: (H,W) class indices, or C for none.
        classes: C.
        ignore: label of ignored pixels.

    Returns:
        int64 (C,C+1), on the prediction's device; the last column is "none".

    Raises:
        ValueError: a label is outside 0..C-1 and is not `ignore`.

    >>> confusion(torch.tensor([[0, 1, 1, 255]]), torch.tensor([[0, 0, 1, 1]]), classes=2, ignore=255)
    tensor([[1, 0, 0],
            [1, 1, 0]])
    """
    prediction = torch.as_tensor(prediction)
    truth = torch.as_tensor(truth).to(prediction.device, torch.int64)
    known = truth != ignore
    ids = truth[known]
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
        wrong = int(ids.max()) if int(ids.max()) >= classes else int(ids.min())
        raise ValueError(f"a label has id {wrong}: ids must be 0 to {classes - 1}, or {ignore} (ignored)")
    cell = ids * (classes + 1) + prediction[known]
    return torch.bincount(cell, minlength=classes * (classes + 1)).view(classes, classes + 1)


def segmentation_metrics(matrix: np.ndarray | Tensor, background: Sequence[bool] = ()) -> dict:
    """Compute segmentation metrics, in 0..1, NaN where undefined.

    Detectron2 0.6 has had two rules for the mean IoU, and both are computed:
    - mIoU is the mean over the classes in the truth (Detectron2 since mid-2022).
    - mIoU_predicted is the sum of the IoUs divided by the number of classes in the truth or the prediction, so that a
      class that is predicted but absent counts as 0 (Detectron2 until mid-2022, and forks of that time).

    Args:
        matrix: (C,C+1) from `confusion`.
        background: C flags, True for background classes; empty: none.

    Returns:
        mIoU, mIoU_predicted, fwIoU, mACC, pACC; and as lists of C numbers IoU, precision, recall, F1 and pixels. If
        there is a background class, also mIoU_foreground and mIoU_predicted_foreground, which leave out its IoU (its
        pixels still count as errors of other classes). If there are only two classes, one of them background, also
        foreground_IoU, the IoU of the other class.

    >>> segmentation_metrics(np.array([[3, 1, 0], [0, 4, 0]]))["IoU"]
    [0.75, 0.8]
    """
    matrix = np.asarray(torch.as_tensor(matrix).cpu())
    square = matrix[:, :-1].astype(np.float64)
    right, truth, predicted = np.diag(square), matrix.sum(1).astype(np.float64), square.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = right / (truth + predicted - right)
        precision, recall = right / predicted, right / truth
        f1 = 2 * right / (truth + predicted)
    total, in_truth = truth.sum(), truth > 0
    both = _means(iou, in_truth, predicted > 0)
    numbers = {"mIoU": both[0], "mIoU_predicted": both[1]}
    if any(background):
        foreground = ~np.array(background)
        both = _means(iou[foreground], in_truth[foreground], predicted[foreground] > 0)
        numbers.update(mIoU_foreground=both[0], mIoU_predicted_foreground=both[1])
        if len(iou) == 2 and foreground.sum() == 1:
            numbers["foreground_IoU"] = float(iou[foreground][0])
    return {
        **numbers,
        "fwIoU": float((iou[in_truth] * truth[in_truth]).sum() / total) if total else float("nan"),
        "mACC": _mean(recall[in_truth]),
        "pACC": float(right.sum() / total) if total else float("nan"),
        "IoU": iou.tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "F1": f1.tolist(),
        "pixels": matrix.sum(1).tolist(),
    }


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion, `right` out of `total` (Wilson 1927); NaN for a total of 0.

    >>> [round(end, 3) for end in wilson(8, 10)]
    [0.49, 0.943]
    """
    if not total:
        return float("nan"), float("nan")
    z, share = 1.959964, right / total
    middle, half = share + z * z / (2 * total), z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    return (middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)


def _means(iou: np.ndarray, in_truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Compute mIoU and mIoU_predicted, which `segmentation_metrics` explains."""
    either = (in_truth | predicted).sum()
    return _mean(iou[in_truth]), float(iou[in_truth].sum() / either) if either else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
