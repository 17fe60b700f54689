#!/usr/bin/env python
"""Measure how well a model tells whether a class is anywhere in an image, and calibrate its `presence`.

python tools/calibrate_presence.py mini
python tools/calibrate_presence.py output/broad/model_final.safetensors --write output/calibrated.safetensors

The images are validation images in which it is known whether a class is there: crops of Dubai, of Czech land cover, of
roads and roofs, and the aeroplanes, boats and cars of SIMD. A class counts as present if it covers 0.5 % of the crop.
The script prints two tables in Markdown for the model card: over all classes and per class the AUC, the Brier score,
and the expected calibration error (ECE, 10 bins). "Before" is the decoder's own score, "after" a logistic regression on
a score of the mask. For the tables it is fitted on half of the scenes of each data set and measured on the other half.
The two numbers to store, MODEL.KNOWN.PRESENCE, are fitted on all scenes; --write stores them in a copy of the weights.
Calibrate last: training and averaging change the scores. Missing data sets are reported and left out.
All take about 80 seconds on one core.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment
from skysense_o.memory_limit import check_memory_limit

set_thread_environment()  # before torch is imported
check_memory_limit()  # before torch is imported, because under too low a limit that import fails with a traceback

import numpy as np
import yaml
from safetensors.torch import save_file
from tabulate import tabulate
from tqdm import tqdm

import skysense_o.data  # noqa: F401  (registers the data sets)
from skysense_o.checkpoint import find_weights, read_config, read_weights, sort_metadata
from skysense_o.errors import exit_code
from skysense_o.evaluation.calibration import (
    area_under_curve,
    brier_score,
    cross_fitted,
    expected_calibration_error,
    fit_logistic,
    probability,
)
from skysense_o.evaluation.presence import SOURCES, PresenceCase, presence_cases
from skysense_o.inference.predictor import Predictor
from skysense_o.whole_files import whole

COLUMNS = {"own score": [0], "mask": [1], "both": [0, 1]}
"""Calibrations that are compared -> columns of the scores that they use. Weights store that of the mask."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("weights", help="name of shipped weights, or a .safetensors file")
    p.add_argument("--limit", type=int, default=0, metavar="N", help="images per data set, evenly spread; 0: all")
    p.add_argument("--write", type=Path, metavar="FILE", help="copy the weights to this .safetensors file, calibrated")
    return p


def run() -> None:
    args = parser().parse_args()
    if args.write and args.write.suffix != ".safetensors":
        raise ValueError(f"{args.write} ends in {args.write.suffix!r}: write .safetensors")
    model, cases = Predictor.from_pretrained(args.weights).model, []
    for source in SOURCES:
        try:
            progress = partial(tqdm, desc=source.data_set, unit="image", disable=None)
            cases += presence_cases(model, source, args.limit, progress)
        except FileNotFoundError as error:
            print(f"{source.data_set}: left out: {error}", file=sys.stderr)
    if not cases:
        raise ValueError("none of the data sets is installed: set DETECTRON2_DATASETS (datasets/README.md)")
    scores, present = np.array([(case.own, case.mask) for case in cases]), np.array([case.present for case in cases])
    first = np.array([case.first_half for case in cases])
    raw = probability([1.0, 0.0, 0.0], scores)
    found = {name: cross_fitted(scores[:, columns], present, first) for name, columns in COLUMNS.items()}
    rows = [["not calibrated", *_metrics(raw, present)]]
    rows += [[f"calibrated: {name}", *_metrics(probabilities, present)] for name, probabilities in found.items()]
    print(_markdown(rows, ["all classes", "AUC", "Brier", "ECE"]), end="\n\n")
    print(_table(cases, raw, found["mask"], present), end="\n\n")
    factors = [round(float(x), 4) for x in fit_logistic(scores[:, COLUMNS["mask"]], present)]
    print(f"MODEL.KNOWN.PRESENCE {factors}")
    if args.write:
        _write(find_weights(args.weights), args.write, factors)
        print(args.write)


def _table(cases: list[PresenceCase], raw: np.ndarray, calibrated: np.ndarray, present: np.ndarray) -> str:
    """A table with a row per class; numbers before -> after the calibration."""
    words, rows = np.array([case.word for case in cases]), []
    for word in [*sorted(set(words.tolist())), None]:
        these = np.ones(len(cases), bool) if word is None else words == word
        pairs = zip(_metrics(raw[these], present[these]), _metrics(calibrated[these], present[these]))
        numbers = [f"{before} -> {after}" if before else "" for before, after in pairs]
        rows.append([word or "all", int(these.sum()), int(present[these].sum()), *numbers])
    return _markdown(rows, ["class", "images", "with it", "AUC", "Brier", "ECE"])


def _metrics(p: np.ndarray, present: np.ndarray) -> list[str]:
    numbers = area_under_curve(p, present), brier_score(p, present), expected_calibration_error(p, present)
    return ["" if np.isnan(x) else f"{x:.3f}" for x in numbers]


def _markdown(rows: list[list], columns: list[str]) -> str:
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True)


def _write(source: Path, target: Path, factors: list[float]) -> None:
    """Copy weights, and set MODEL.KNOWN.PRESENCE in the config in their metadata."""
    body = yaml.safe_load(read_config(source))
    body["MODEL"]["KNOWN"]["PRESENCE"] = factors
    with whole(target) as part:
        save_file(read_weights(source), part, metadata={"format": "pt", "config": yaml.safe_dump(body)})
        sort_metadata(part)


if __name__ == "__main__":
    sys.exit(exit_code(run))
