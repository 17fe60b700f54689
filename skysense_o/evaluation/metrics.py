"""Numbers from a confusion matrix. Alphabet: C classes; rows are the truth, columns the prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def confusion(truth: Tensor, prediction: Tensor, classes: int, ignore: int) -> Tensor:
    """(C,C+1) int64 counts of pixels, on the prediction's device; the last column is "none of these".

    Args:
        truth: (H,W) class ids or `ignore`, whose pixels are left out. prediction: (H,W) class ids, or C for none.

    Raises:
        ValueError: an id of the truth outside 0..C-1 that is not `ignore`.
    """
    prediction = torch.as_tensor(prediction)
    truth = torch.as_tensor(truth).to(prediction.device, torch.int64)
    known = truth != ignore
    ids = truth[known]
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
        wrong = int(ids.max()) if int(ids.max()) >= classes else int(ids.min())
        raise ValueError(f"a label has id {wrong}: permitted are 0 to {classes - 1} and {ignore} (ignored)")
    cell = ids * (classes + 1) + prediction[known]
    return torch.bincount(cell, minlength=classes * (classes + 1)).view(classes, classes + 1)


def segmentation_metrics(matrix: np.ndarray | Tensor, background: Sequence[bool] = ()) -> dict:
    """Metrics as shares in 0..1, NaN where undefined.

    Two rules for the mean IoU are in use, and both go by the name of Detectron2 0.6:
    - mIoU: over classes that the truth has (Detectron2 since mid-2022);
    - mIoU_predicted: divided by the classes that truth or prediction has, so that an absent class that is predicted
      anywhere counts as 0 (Detectron2 before, and forks of that time).

    Args:
        matrix: (C,C+1) of `confusion`. background: C flags of classes that only stand for the rest.

    Returns:
        mIoU, mIoU_predicted, fwIoU, mACC, pACC, and IoU, precision, recall, F1, pixels as lists of C. Where there is a
        background, mIoU_foreground and mIoU_predicted_foreground leave it out of the mean (its pixels still count
        against the others), and with two classes foreground_IoU is that of the other one.
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
        kept = ~np.array(background)
        both = _means(iou[kept], in_truth[kept], predicted[kept] > 0)
        numbers.update(mIoU_foreground=both[0], mIoU_predicted_foreground=both[1])
        if len(iou) == 2 and kept.sum() == 1:
            numbers["foreground_IoU"] = float(iou[kept][0])
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
    """The interval that holds a share with 95 %, of `right` out of `total` (Wilson 1927)."""
    if not total:
        return float("nan"), float("nan")
    z, share = 1.959964, right / total
    middle, half = share + z * z / (2 * total), z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    return (middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)


def _means(iou: np.ndarray, in_truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """By either rule."""
    either = (in_truth | predicted).sum()
    return _mean(iou[in_truth]), float(iou[in_truth].sum() / either) if either else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
