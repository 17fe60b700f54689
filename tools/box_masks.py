#!/usr/bin/env python
"""Compute masks for the boxes of a data set, as label images in a separate folder that training reads.

python tools/box_masks.py simd_train harbor_ships_train output/box_masks
python tools/box_masks.py neon_crowns_train output/box_masks --ellipse

Images that already have a label image are skipped, so an interrupted run resumes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

import cv2
from tqdm import tqdm

import skysense_o.data  # noqa: F401  (registers the data sets)
from skysense_o.data.captions import read_record_image
from skysense_o.data.catalog import records_of, spec_of
from skysense_o.data.classes import load_classes
from skysense_o.data.weak.box_masks import box_labels, ellipse_mask, grabcut_mask
from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "names",
        nargs="+",
        metavar="SPLIT",
        help="data sets with boxes, such as simd_train; the last argument is the folder",
    )
    p.add_argument("out", type=Path, help="folder for the label images, <folder>/<data set>/<image>.png")
    p.add_argument(
        "--ellipse", action="store_true", help="label the ellipse inside each box instead of a mask by GrabCut"
    )
    return p


def run() -> int:
    a = parser().parse_args()
    cv2.setNumThreads(1)
    for name in a.names:
        made = 0
        for record in tqdm(records_of(name), desc=name, unit="image"):
            if "boxes" not in record:
                raise ValueError(f"{name} has no boxes: give a data set that has, such as simd_train")
            spec = spec_of(record["dataset"])
            path = a.out / spec.name / (Path(record["file_name"]).stem + ".png")
            if path.is_file():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            image, method = read_record_image(record), ellipse_mask if a.ellipse else grabcut_mask
            labels = box_labels(image, record["boxes"], len(load_classes(spec.class_table_name)), method)
            part = path.with_suffix(".part.png")
            cv2.imwrite(str(part), labels)
            part.rename(path)
            made += 1
        print(f"{name}: {made} label images made in {a.out}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
