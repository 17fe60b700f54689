#!/usr/bin/env python
"""Compare results of run_eval.sh with the table in RESULTS.md.

  python tools/compare_results.py output/reproduce            compare; tools/reproduce.sh ends with this
  python tools/compare_results.py output/reproduce --write    write the measured values into the table

A row of the table has a run (a subfolder of the given folder), a data set, a metric and its value in percent. The exit
code is 1 if a value differs by more than the tolerance; metrics that were not measured are listed and do not count.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tabulate import tabulate

from skysense_o.errors import exit_code
from skysense_o.whole_files import write_text

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"
ROW = re.compile(r"^\| *(\w+) *\| *(\w+) *\| *([\w/@ ]+?) *\| *(-?[\d.]+) *\|$", re.MULTILINE)
TOLERANCE = 0.3  # in percentage points, because rounding differs between processors
SHOWN = {
    "segmentation": ("mIoU", "fwIoU", "pACC", "prompt_click", "prompt_box"),
    "classification": ("top1", "top5"),
    "image-text": ("image_R@1", "image_R@5", "image_R@10", "text_R@1", "text_R@5", "text_R@10"),
    "vqa": ("model/", "question_only/", "shuffled/"),
    "words": ("",),  # the numbers that tools/evaluate_words.py writes
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", help="folder that contains one folder per run, each with a results.json")
    p.add_argument(
        "--results", default=str(RESULTS), metavar="FILE", help="Markdown file with the table (default: RESULTS.md)"
    )
    p.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help=f"largest permitted difference in percentage points (default: {TOLERANCE})",
    )
    p.add_argument("--write", action="store_true", help="write the measured values into the table")
    return p


def measured(folder: Path) -> dict[tuple[str, str, str], float]:
    """Return {(run, data set, metric): percent} for all runs below a folder."""
    values = {}
    for path in sorted(folder.glob("*/results.json")):
        for body in json.loads(path.read_text())["results"]:
            for key, value in body["numbers"].items():
                if value is not None and key.startswith(SHOWN[body["task"]]):
                    values[path.parent.name, body["data_set"], key] = 100 * value
    return values


def run() -> int:
    args = parser().parse_args()
    path, values = Path(args.results), measured(Path(args.folder))
    if not values:
        raise FileNotFoundError(f"no results.json below {args.folder!r}: run tools/reproduce.sh first")
    text = path.read_text()
    expected = {(run, data, number): float(value) for run, data, number, value in ROW.findall(text)}
    if args.write:
        heads = ["run", "data set", "number", "%"]
        table = tabulate(
            [[*key, f"{value:.2f}"] for key, value in values.items()], heads, tablefmt="github", disable_numparse=True
        )
        begin, end = "<!-- recomputed: begin -->\n", "\n<!-- recomputed: end -->"
        before, _, rest = text.partition(begin)
        write_text(path, before + begin + table + end + rest.partition(end)[2])
        print(f"{len(values)} rows -> {path}")
        return 0
    rows = [
        [*key, value, values.get(key), *_verdict(value, values.get(key), args.tolerance)]
        for key, value in expected.items()
    ]
    print(tabulate(rows, ["run", "data set", "number", "RESULTS.md", "here", "difference", ""], floatfmt=".2f"))
    bad = sum(row[-1] == "DIFFERS" for row in rows)
    print(f"{len(rows)} numbers: {bad} differ by more than {args.tolerance}, {sum(r[4] is None for r in rows)} not run")
    return 1 if bad else 0


def _verdict(value: float, here: float | None, tolerance: float) -> tuple[float | None, str]:
    if here is None:
        return None, "not run"
    return here - value, "DIFFERS" if abs(here - value) > tolerance else "agrees"


if __name__ == "__main__":
    sys.exit(exit_code(run))
