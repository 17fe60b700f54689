"""Evaluate segmentation on a data set: run the protocol on all images, compute metrics, write the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor, nn

from skysense_o.evaluation.figures import write_confusion
from skysense_o.evaluation.images import side_by_side
from skysense_o.evaluation.metrics import confusion, segmentation_metrics
from skysense_o.evaluation.predictions import as_coco, save_png, write_coco
from skysense_o.evaluation.protocol import Protocol
from skysense_o.inference.drawing import Color
from skysense_o.sample import IGNORE, Sample
from skysense_o.vocabulary import Vocabulary
from skysense_o.whole_files import whole
from skysense_o.workers import Each, here

logger = logging.getLogger(__name__)
MEANS = (
    "mIoU", "mIoU_predicted", "mIoU_foreground", "mIoU_predicted_foreground", "foreground_IoU", "fwIoU", "mACC", "pACC",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One evaluation: the data set, the protocol and the files to write.

    Attributes:
        name: name of the data set, for files and the report.
        samples: functions from a vocabulary to a Sample with `sem_seg`, one per image; they are called one by one.
        colors: RGB per class (C).
        background: per class (C), whether it is a background class.
        folder: folder to write the files to.
        protocol: how labels are predicted.
        images: number of images of which to draw input, truth and prediction: this many with the best mIoU, this many
            around the median, and this many with the worst.
        predictions: formats in which to write all predictions: "coco", "png", both or none.
    """

    name: str
    samples: Sequence[Callable[[Vocabulary], Sample]]
    colors: Sequence[Color]
    background: Sequence[bool]
    folder: Path
    protocol: Protocol
    images: int = 0
    predictions: Sequence[str] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.colors)

    @property
    def rest(self) -> int:
        """Label of pixels below the threshold: the background class if there is exactly one, else C (no class)."""
        flags = list(self.background)
        return flags.index(True) if flags.count(True) == 1 else self.num_classes


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, vocabularies: dict[str, Vocabulary], each: Each | None = None
) -> dict[str, dict]:
    """Evaluate a model on one data set, once per vocabulary.

    Args:
        model: a SkySenseO. It is in eval mode during the evaluation. Its `predict` is called instead of its forward,
            because a trainer may run the forward in half precision; the evaluation always uses full precision.
        task: the data set and the protocol.
        vocabularies: title -> vocabulary with C classes in the order of the class ids, then background words.
        each: distributes the images over workers that hold the model; None: this process evaluates all images.

    Returns:
        title -> metrics (see `segmentation_metrics`), the same on all processes.
    """
    was_training = model.training
    model.eval()
    results = {}
    for title, vocabulary in vocabularies.items():
        first = title == next(iter(vocabularies))
        matrix, scores = _matrix(each or here(model), task, title, vocabulary, first)
        results[title] = segmentation_metrics(matrix, task.background)
        if comm.is_main_process():
            classes = vocabulary.classes[: task.num_classes]
            path = task.folder / f"{task.name}_{title.replace(' ', '_')}_confusion"
            write_confusion(path, matrix.numpy(), classes)
            logger.info("%s, vocabulary: %s\n%s", task.name, title, metrics_table(results[title], classes))
            if first and task.images:
                _sheets(model, task, vocabulary, scores)
    comm.synchronize()
    model.train(was_training)
    return results


def _matrix(each: Each, task: Task, title: str, vocabulary: Vocabulary, keep: bool) -> tuple[Tensor, dict[int, float]]:
    """The confusion matrix (C,C+1) over all processes, and a dict from the index of an image to its mIoU."""
    total, scores, rows = torch.zeros((task.num_classes, task.num_classes + 1), dtype=torch.int64), {}, {}
    mine = range(comm.get_rank(), len(task.samples), comm.get_world_size())
    images = each(partial(_one_image, task, vocabulary, keep), mine, desc=f"{task.name}, {title}")
    for index, (matrix, found) in images:
        scores[index], rows[index] = segmentation_metrics(matrix)["mIoU"], found
        total += matrix
    if comm.get_world_size() > 1:
        total = torch.stack(comm.all_gather(total)).sum(0)
        scores = {index: score for part in comm.all_gather(scores) for index, score in part.items()}
        rows = {index: found for part in comm.gather(rows) for index, found in part.items()}
    if keep and "coco" in task.predictions and comm.is_main_process():
        in_order = [row for index in sorted(rows) for row in rows[index]]
        write_coco(task.folder / f"{task.name}_predictions" / "sem_seg_predictions.json", in_order)
    return total, scores


@torch.no_grad()
def _one_image(
    task: Task, vocabulary: Vocabulary, keep: bool, model: nn.Module, index: int
) -> tuple[Tensor, list[dict]]:
    """The confusion matrix of one image, and its predictions in COCO's format; also write its PNG if asked for."""
    sample, rows = task.samples[index](vocabulary), []
    prediction = task.protocol.labels(model, sample, task.rest).to(model.device)
    if keep and task.predictions:
        labels, name = prediction.cpu().numpy(), sample["file_name"]
        if "coco" in task.predictions:
            rows = as_coco(name, labels, task.num_classes)
        if "png" in task.predictions:  # the name includes the index, because files of one set may have equal names
            folder = task.folder / f"{task.name}_predictions"
            save_png(folder / f"{index:05d}_{Path(name).stem}.png", labels, list(task.colors))
    return confusion(sample["sem_seg"], prediction, task.num_classes, IGNORE).cpu(), rows


def _sheets(model: nn.Module, task: Task, vocabulary: Vocabulary, scores: dict[int, float]) -> None:
    """Draw input | truth | prediction of the images with the best, the median and the worst mIoU, one file each."""
    order = sorted((i for i in scores if not np.isnan(scores[i])), key=lambda i: (-scores[i], i))
    k, middle = min(task.images, len(order)), max(0, (len(order) - task.images) // 2)
    chosen: dict[int, str] = {}
    for rank, indices in (("worst", order[len(order) - k :]), ("best", order[:k]), ("median", order[middle:][:k])):
        chosen.update((i, rank) for i in indices if i not in chosen)
    for index, rank in chosen.items():
        sample = task.samples[index](vocabulary)
        prediction = task.protocol.labels(model, sample, task.rest).cpu().numpy()
        classes = vocabulary.classes[: task.num_classes]
        image = side_by_side(sample, prediction, task.colors, classes, IGNORE)
        name = f"{rank}_{scores[index]:.3f}_{Path(sample['file_name']).stem}.jpg"
        with whole(task.folder / f"{task.name}_images" / name) as part:
            image.save(part, format="JPEG", quality=88)


def metrics_table(metrics: dict, classes: Sequence[str]) -> str:
    """A table with one row per class, and a line with the means."""
    columns = ("IoU", "precision", "recall", "F1")
    rows = [[name, *(metrics[column][i] for column in columns), metrics["pixels"][i]] for i, name in enumerate(classes)]
    table = tabulate(rows, ["class", *columns, "pixels"], floatfmt=".3f", intfmt=",")
    means = "   ".join(f"{key} {metrics[key]:.4f}" for key in MEANS if key in metrics)
    return f"{table}\n{means}\n(mIoU leaves out absent classes; mIoU_predicted counts them as 0 if predicted)"
