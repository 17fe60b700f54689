"""Evaluate segmentation on a registered data set: protocol, progress, report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from skysense_o.evaluation.figures import write_confusion
from skysense_o.evaluation.images import side_by_side
from skysense_o.evaluation.metrics import confusion, segmentation_metrics
from skysense_o.evaluation.predictions import as_coco, save_png, write_coco
from skysense_o.evaluation.protocol import Protocol
from skysense_o.inference.drawing import Color
from skysense_o.sample import IGNORE, Sample
from skysense_o.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
MEANS = (
    "mIoU", "mIoU_predicted", "mIoU_foreground", "mIoU_predicted_foreground", "foreground_IoU", "fwIoU", "mACC", "pACC",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is evaluated, and what is left behind.

    name: of the data set, as files and the report have it. samples: functions, vocabulary -> Sample with
    `sem_seg`, called one at a time. colors, background: C each. folder: where the files go, named after the data set.
    images: sheets of the best, as many of the middle and of the worst images. predictions: of coco, png.
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
        return len(self.colors)

    @property
    def rest(self) -> int:
        """What a pixel below the threshold is: the class that stands for the rest, where there is one; else none."""
        flags = list(self.background)
        return flags.index(True) if flags.count(True) == 1 else self.num_classes


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, vocabularies: dict[str, Vocabulary]) -> dict[str, dict]:
    """Score a model on one data set, once for each way of calling its classes.

    Args:
        model: a SkySenseO; put into eval mode here, and back. Its `predict` is called and not its forward, which a
            trainer may have wrapped in half precision: the numbers are those of full precision, always.
        vocabularies: title -> C classes in the order of the class ids, background words behind them.

    Returns:
        title -> metrics (see `segmentation_metrics`), equal on every process.
    """
    was_training = model.training
    model.eval()
    results = {}
    for title, vocabulary in vocabularies.items():
        first = title == next(iter(vocabularies))
        matrix, scores = _matrix(model, task, title, vocabulary, first)
        results[title] = segmentation_metrics(matrix, task.background)
        if comm.is_main_process():
            classes = vocabulary.classes[: task.num_classes]
            path = task.folder / f"{task.name}_{title.replace(' ', '_')}_confusion"
            write_confusion(path, matrix.cpu().numpy(), classes)
            logger.info("%s, classes called by %s\n%s", task.name, title, metrics_table(results[title], classes))
            if first and task.images:
                _sheets(model, task, vocabulary, scores)
    comm.synchronize()
    model.train(was_training)
    return results


def _matrix(
    model: nn.Module, task: Task, title: str, vocabulary: Vocabulary, keep: bool
) -> tuple[Tensor, dict[int, float]]:
    """The confusion matrix (C,C+1) of all processes, on the device, and each image's own mIoU by its number."""
    total = torch.zeros((task.num_classes, task.num_classes + 1), dtype=torch.int64, device=model.device)
    scores, rows = {}, []
    mine = range(comm.get_rank(), len(task.samples), comm.get_world_size())
    for index in tqdm(mine, desc=f"{task.name}, {title}", unit="image", disable=not comm.is_main_process()):
        sample = task.samples[index](vocabulary)
        prediction = task.protocol.labels(model, sample, task.rest).to(model.device)
        matrix = confusion(sample["sem_seg"], prediction, task.num_classes, IGNORE)
        scores[index] = segmentation_metrics(matrix)["mIoU"]
        total += matrix
        if keep and task.predictions:
            found, name = prediction.cpu().numpy(), sample["file_name"]
            if "coco" in task.predictions:
                rows += as_coco(name, found, task.num_classes)
            if "png" in task.predictions:  # numbered: files of one set may share their names
                folder = task.folder / f"{task.name}_predictions"
                save_png(folder / f"{index:05d}_{Path(name).stem}.png", found, list(task.colors))
    if comm.get_world_size() > 1:
        total = torch.stack([part.to(model.device) for part in comm.all_gather(total.cpu())]).sum(0)
        scores = {index: score for part in comm.all_gather(scores) for index, score in part.items()}
        rows = [row for part in comm.gather(rows) for row in part]
    if keep and "coco" in task.predictions and comm.is_main_process():
        write_coco(task.folder / f"{task.name}_predictions" / "sem_seg_predictions.json", rows)
    return total, scores


def _sheets(model: nn.Module, task: Task, vocabulary: Vocabulary, scores: dict[int, float]) -> None:
    """Input | truth | prediction of the best, the middle and the worst images by their own mIoU."""
    order = sorted((i for i in scores if not np.isnan(scores[i])), key=lambda i: (-scores[i], i))
    k, middle = min(task.images, len(order)), max(0, (len(order) - task.images) // 2)
    chosen: dict[int, str] = {}
    for rank, some in (("worst", order[len(order) - k :]), ("best", order[:k]), ("median", order[middle:][:k])):
        chosen.update((i, rank) for i in some if i not in chosen)
    for index, rank in chosen.items():
        sample = task.samples[index](vocabulary)
        prediction = task.protocol.labels(model, sample, task.rest).cpu().numpy()
        classes = vocabulary.classes[: task.num_classes]
        image = side_by_side(sample, prediction, task.colors, classes, IGNORE)
        folder = task.folder / f"{task.name}_images"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{rank}_{scores[index]:.3f}_{Path(sample['file_name']).stem}.jpg", quality=88)


def metrics_table(metrics: dict, classes: Sequence[str]) -> str:
    """One row a class, and a line of the means."""
    columns = ("IoU", "precision", "recall", "F1")
    rows = [[name, *(metrics[column][i] for column in columns), metrics["pixels"][i]] for i, name in enumerate(classes)]
    table = tabulate(rows, ["class", *columns, "pixels"], floatfmt=".3f", intfmt=",")
    means = "   ".join(f"{key} {metrics[key]:.4f}" for key in MEANS if key in metrics)
    return f"{table}\n{means}\n(mIoU: absent classes dropped; mIoU_predicted: absent but predicted classes count as 0)"
