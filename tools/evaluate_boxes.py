#!/usr/bin/env python
"""Compute the average precision of boxes as COCO defines it.

python demo/demo.py --input scene.tif --classes "ship,plane" --output out --save boxes
python tools/evaluate_boxes.py truth.json out/scene_boxes.json

TRUTH is a COCO annotation file with images, categories, and annotations with bbox. RESULTS is a COCO result file. In
the file that demo.py writes for a scene, image_id is 1 and category_id is the class id in the label map; TRUTH must use
the same ids.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before torch is imported

from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("truth", metavar="TRUTH", help="COCO annotation file")
    p.add_argument("results", metavar="RESULTS", help="COCO result file")
    p.add_argument("--max-boxes", type=int, default=1000, metavar="N", help="boxes per class and image (default: 1000)")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


def run() -> int:
    args = parser().parse_args()
    if args.max_boxes < 1:
        raise ValueError(f"--max-boxes {args.max_boxes} is out of range: 1 or more")
    from tabulate import tabulate

    from skysense_o.evaluation.boxes import box_average_precision, read_coco_boxes

    metrics = box_average_precision(*read_coco_boxes(args.truth, args.results), args.max_boxes)
    if args.json:
        print(json.dumps(metrics, indent=1))
        return 0
    per_class = metrics.pop("per_class")
    rows = [*metrics.items(), *((f"AP {name}", value) for name, value in per_class.items())]
    print(tabulate(rows, ["metric", "value"], floatfmt=".4f"))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
