"""Numbers from a confusion matrix. Alphabet: C classes; rows are the truth, columns the prediction."""

from __future__ import annotations

import numpy as np


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """(C,C+1) int64 counts of pixels; the last column is "none of these". Ignored pixels are left out.

    Args:
        truth: (H,W) class ids or `ignore`. prediction: (H,W) class ids, or C for none.

    Raises:
        ValueError: an id of the truth outside 0..C-1 that is not `ignore`.
    """
    known = truth != ignore
    if known.any() and truth[known].max() >= classes:
        raise ValueError(
            f"a label has id {truth[known].max()}: permitted are 0 to {classes - 1} and {ignore} (ignored)"
        )
    cell = truth[known].astype(np.int64) * (classes + 1) + prediction[known]
    return np.bincount(cell, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def segmentation_metrics(matrix: np.ndarray) -> dict:
    """Metrics as shares in 0..1, NaN where undefined.

    Two rules for the mean IoU are in use, and both go by the name of Detectron2 0.6:
    - mIoU: over classes that the truth has (Detectron2 since mid-2022);
    - mIoU_predicted: divided by the classes that truth or prediction has, so that an absent class that is predicted
      anywhere counts as 0 (Detectron2 before, and forks of that time).

    Returns:
        mIoU, mIoU_predicted, fwIoU, mACC, pACC, and IoU, precision, recall, F1, pixels as lists of C.
    """
    square = matrix[:, :-1].astype(np.float64)
    right, truth, predicted = np.diag(square), matrix.sum(1).astype(np.float64), square.sum(0)
    in_truth, in_either = truth > 0, (truth + predicted) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = right / (truth + predicted - right)
        precision, recall = right / predicted, right / truth
        f1 = 2 * right / (truth + predicted)
    total = truth.sum()
    return {
        "mIoU": _mean(iou[in_truth]),
        "mIoU_predicted": float(iou[in_truth].sum() / in_either.sum()) if in_either.any() else float("nan"),
        "fwIoU": float((iou[in_truth] * truth[in_truth]).sum() / total) if total else float("nan"),
        "mACC": _mean(recall[in_truth]),
        "pACC": float(right.sum() / total) if total else float("nan"),
        "IoU": iou.tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "F1": f1.tolist(),
        "pixels": matrix.sum(1).tolist(),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
