"""Evaluate segmentation on a registered data set: protocol, progress, report."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from skysense_o.evaluation.metrics import confusion, segmentation_metrics
from skysense_o.evaluation.pictures import side_by_side
from skysense_o.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    name: str,
    samples: list,
    vocabularies: dict[str, Vocabulary],
    colors: list[tuple[int, int, int]],
    folder: Path,
    pictures: int = 0,
) -> dict[str, dict]:
    """Score a model on one data set, once for each way of calling its classes.

    Args:
        model: a SkySenseO; put into eval mode here, and back. Its `predict` is called and not its forward, which a
            trainer may have wrapped in half precision: the numbers are those of full precision, always.
        name: registered data set, for its ignore value and the report.
        samples: sequence of functions, vocabulary -> Sample with `sem_seg`; called one at a time.
        vocabularies: title -> C names in the order of the class ids.
        colors: C RGB colours, for the pictures.
        folder: where `<name>.json`, `<name>_<title>_confusion.csv` and pictures go.
        pictures: for how many of the first samples to write input | truth | prediction.

    Returns:
        title -> metrics (see `segmentation_metrics`), equal on every process.
    """
    was_training = model.training
    model.eval()
    ignore, results = MetadataCatalog.get(name).ignore_label, {}
    for title, vocabulary in vocabularies.items():
        matrix = torch.zeros((len(vocabulary), len(vocabulary) + 1), dtype=torch.int64)
        mine = range(comm.get_rank(), len(samples), comm.get_world_size())
        for index in tqdm(mine, desc=f"{name}, {title}", unit="picture", disable=not comm.is_main_process()):
            sample = samples[index](vocabulary)
            prediction = model.predict([sample], "labels")[0]["labels"].cpu().numpy()
            truth = sample["sem_seg"].numpy()
            matrix += torch.from_numpy(confusion(truth, prediction, len(vocabulary), ignore))
            if index < pictures and title == next(iter(vocabularies)):
                picture = side_by_side(sample, prediction, colors, vocabulary.names, ignore)
                (folder / f"{name}_pictures").mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{name}_pictures" / f"{Path(sample['file_name']).stem}.jpg", quality=88)
        results[title] = segmentation_metrics(_sum_over_processes(matrix).numpy())
        if comm.is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            _write_confusion(folder / f"{name}_{title.replace(' ', '_')}_confusion.csv", matrix, vocabulary.names)
            logger.info("%s, classes called by %s\n%s", name, title, as_table(results[title], vocabulary.names))
    if comm.is_main_process():
        words = {title: list(v.phrases) for title, v in vocabularies.items()}
        body = json.dumps(_without_nan({"results": results, "words": words}), indent=1)
        (folder / f"{name}.json").write_text(body)
    model.train(was_training)
    return results


def as_table(metrics: dict, names: tuple[str, ...]) -> str:
    """One row a class, and a line of the means."""
    columns = ("IoU", "precision", "recall", "F1")
    rows = [[name, *(metrics[column][i] for column in columns), metrics["pixels"][i]] for i, name in enumerate(names)]
    table = tabulate(rows, ["class", *columns, "pixels"], floatfmt=".3f", intfmt=",")
    means = "   ".join(f"{key} {metrics[key]:.4f}" for key in ("mIoU", "mIoU_predicted", "fwIoU", "mACC", "pACC"))
    return f"{table}\n{means}\n(mIoU: absent classes dropped; mIoU_predicted: absent but predicted classes count as 0)"


def _without_nan(value):
    """JSON knows no NaN: what is undefined becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _sum_over_processes(matrix: torch.Tensor) -> torch.Tensor:
    if comm.get_world_size() > 1:
        parts = comm.all_gather(matrix)
        matrix.copy_(torch.stack(parts).sum(0))
    return matrix


def _write_confusion(path: Path, matrix: torch.Tensor, names: tuple[str, ...]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["truth \\ prediction", *names, "none"])
        writer.writerows([name, *row] for name, row in zip(names, np.asarray(matrix).tolist()))
