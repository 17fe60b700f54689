#!/usr/bin/env python
"""Hold results of run_eval.sh against the table of RESULTS.md.

  python tools/compare_results.py output/reproduce            what tools/reproduce.sh ends with
  python tools/compare_results.py output/reproduce --write    put what was measured into the table

A row of the table is a run (a folder below the given one), a data set, a number and its value in percent. Exit status 1
where a value is further away than the tolerance; what was not run is told and counts for nothing.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tabulate import tabulate

from skysense_o.errors import exit_code

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"
ROW = re.compile(r"^\| *(\w+) *\| *(\w+) *\| *([\w/@ ]+?) *\| *(-?[\d.]+) *\|$", re.MULTILINE)
TOLERANCE = 0.3  # points: another processor rounds otherwise
SHOWN = {
    "segmentation": ("mIoU", "fwIoU", "pACC"),
    "classification": ("top1", "top5"),
    "image-text": ("image_R@1", "image_R@5", "image_R@10", "text_R@1", "text_R@5", "text_R@10"),
    "vqa": ("model/", "question_only/", "shuffled/"),
    "words": ("",),  # all of tools/evaluate_words.py
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", help="holds one folder a run, each with a results.json")
    p.add_argument("--results", default=str(RESULTS), metavar="FILE", help="the Markdown (default: RESULTS.md)")
    p.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"in points (default: {TOLERANCE})")
    p.add_argument("--write", action="store_true", help="replace the table by what was measured")
    return p


def measured(folder: Path) -> dict[tuple[str, str, str], float]:
    """(run, data set, number) -> percent, of all runs below a folder."""
    found = {}
    for path in sorted(folder.glob("*/results.json")):
        for body in json.loads(path.read_text())["results"]:
            for key, value in body["numbers"].items():
                if value is not None and key.startswith(SHOWN[body["task"]]):
                    found[path.parent.name, body["data_set"], key] = 100 * value
    return found


def run() -> int:
    args = parser().parse_args()
    path, found = Path(args.results), measured(Path(args.folder))
    if not found:
        raise FileNotFoundError(f"no results.json below {args.folder!r}: run tools/reproduce.sh first")
    text = path.read_text()
    wanted = {(run, data, number): float(value) for run, data, number, value in ROW.findall(text)}
    if args.write:
        heads = ["run", "data set", "number", "%"]
        table = tabulate(
            [[*key, f"{value:.2f}"] for key, value in found.items()], heads, tablefmt="github", disable_numparse=True
        )
        begin, end = "<!-- recomputed: begin -->\n", "\n<!-- recomputed: end -->"
        before, _, rest = text.partition(begin)
        path.write_text(before + begin + table + end + rest.partition(end)[2])
        print(f"{len(found)} rows -> {path}")
        return 0
    rows = [
        [*key, value, found.get(key), *_verdict(value, found.get(key), args.tolerance)] for key, value in wanted.items()
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
