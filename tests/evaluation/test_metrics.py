"""Tests that segmentation metrics agree with Detectron2's evaluator and with a copy of its earlier rule for mIoU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image
from scipy.stats import binomtest
from torchmetrics.classification import MulticlassJaccardIndex

from skysense_o.evaluation.metrics import confusion, segmentation_metrics, wilson


@pytest.fixture
def random_labels():
    """Return true and predicted labels; class 3 occurs only in the prediction, class 4 in neither of the two."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (40, 50))
    prediction = np.where(rng.random((40, 50)) < 0.6, truth, rng.integers(0, 4, (40, 50)))
    truth[:5] = 255
    return truth, prediction


def test_against_detectron2(random_labels, tmp_path):
    truth, prediction = random_labels
    Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "truth.png")
    record = {"file_name": "x.jpg", "sem_seg_file_name": str(tmp_path / "truth.png")}
    DatasetCatalog.register("rule", lambda: [record])
    MetadataCatalog.get("rule").set(stuff_classes=list("abcde"), ignore_label=255)
    try:
        evaluator = SemSegEvaluator(
            "rule",
            distributed=False,
            sem_seg_loading_fn=lambda filename, dtype: np.asarray(Image.open(filename), dtype=dtype),
        )
        evaluator.reset()
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(prediction), 5).permute(2, 0, 1).float()
        evaluator.process([record], [{"sem_seg": one_hot}])
        theirs = evaluator.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove("rule")
    ours = segmentation_metrics(confusion(truth, prediction, 5, 255))
    for key in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert 100 * ours[key] == pytest.approx(theirs[key]), key


def test_the_older_rule_counts_a_predicted_absent_class_as_zero(random_labels):
    truth, prediction = random_labels
    metrics = segmentation_metrics(confusion(truth, prediction, 5, 255))
    known = truth != 255
    iou = [
        ((truth == c) & (prediction == c) & known).sum() / (((truth == c) | (prediction == c)) & known).sum()
        for c in range(3)
    ]
    assert metrics["mIoU"] == pytest.approx(np.mean(iou))
    assert metrics["mIoU_predicted"] == pytest.approx(sum(iou) / 4)
    assert np.isnan(metrics["IoU"][4])


def test_none_counts_as_an_error_but_is_no_class():
    truth, prediction = np.array([[0, 0, 1, 1]]), np.array([[0, 2, 1, 1]])  # with 2 classes, label 2 means "none"
    metrics = segmentation_metrics(confusion(truth, prediction, 2, 255))
    assert metrics["IoU"] == [0.5, 1.0]
    assert metrics["recall"] == [0.5, 1.0]
    assert metrics["precision"] == [1.0, 1.0]
    assert metrics["mIoU_predicted"] == 0.75


def test_an_id_out_of_range_is_refused():
    with pytest.raises(ValueError, match="id 7: ids must be 0 to 4, or 255"):
        confusion(np.array([[7]]), np.array([[0]]), 5, 255)


def test_no_labels_give_nan():
    metrics = segmentation_metrics(confusion(np.array([[255]]), np.array([[0]]), 2, 255))
    assert np.isnan(metrics["mIoU"])
    assert np.isnan(metrics["pACC"])


def test_against_torchmetrics(random_labels):
    """IoU per class equals torchmetrics' IoU, except for absent classes: ours is NaN, theirs is 0."""
    truth, prediction = random_labels
    theirs = MulticlassJaccardIndex(5, average=None, ignore_index=255)
    theirs.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    ours = segmentation_metrics(confusion(truth, prediction, 5, 255))
    assert np.nan_to_num(ours["IoU"]) == pytest.approx(theirs.compute().numpy(), abs=1e-6)
    counts = confusion(truth, prediction, 5, 255)
    assert counts.dtype == torch.int64
    assert torch.equal(counts[:, :5], theirs.confmat)


def test_counts_are_exact_beyond_float32():
    """Pixel counts above 2**24, which float32 cannot represent, are exact."""
    pixels = torch.zeros(2**24 + 1, dtype=torch.uint8)
    assert int(confusion(pixels, pixels.long(), 1, 255)[0, 0]) == 2**24 + 1


def test_with_and_without_background(random_labels):
    truth, prediction = random_labels
    matrix = confusion(truth, prediction, 5, 255)
    plain, without = segmentation_metrics(matrix), segmentation_metrics(matrix, [True, False, False, False, False])
    assert without["mIoU"] == plain["mIoU"]
    assert without["mIoU_foreground"] == pytest.approx(np.mean(plain["IoU"][1:3]))
    assert without["mIoU_predicted_foreground"] == pytest.approx(sum(plain["IoU"][1:3]) / 3)
    two = segmentation_metrics(confusion(truth % 2, prediction % 2, 2, 255), [True, False])
    assert two["foreground_IoU"] == two["IoU"][1]
    assert "foreground_IoU" not in without


def test_wilson_against_scipy():
    for right, total in ((0, 10), (7, 10), (210, 210), (40, 210)):
        theirs = binomtest(right, total).proportion_ci(0.95, "wilson")
        assert wilson(right, total) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert np.isnan(wilson(0, 0)[0])
