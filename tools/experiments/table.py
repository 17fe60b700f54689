#!/usr/bin/env python
"""Print mean and standard deviation over the seeds of an experiment.

The numbers are in the metrics.json of its runs, and in the results.json of evaluations in folders within the runs.

python tools/experiments/table.py output/experiment
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from tabulate import tabulate

SHOWN = ("/mIoU", "/IoU of building", "/top1", "_R@1", "_R@5", "_R@10")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", help="folder that contains one folder per run, named <name>_<seed> or <name>")
    return p


def run() -> int:
    groups: dict[str, list[dict]] = defaultdict(list)
    for path in sorted(Path(parser().parse_args().folder).glob("*/metrics.json")):
        numbers = [pair for line in path.read_text().splitlines() for pair in json.loads(line).items()]
        for results in sorted(path.parent.glob("*/results.json")):
            for one in json.loads(results.read_text())["results"]:
                title = f"{results.parent.name}: {one['data_set']}"
                numbers += [(f"{title}/{key}", value) for key, value in one["numbers"].items()]
        name, _, seed = path.parent.name.rpartition("_")
        last = {key: 100 * value for key, value in numbers if key.endswith(SHOWN)}  # keep the last value of each key
        groups[name if seed.isdigit() else path.parent.name].append(last)
    rows = []
    for name, runs in groups.items():
        for key in dict.fromkeys(k for r in runs for k in r):
            values = [r[key] for r in runs if key in r]
            spread = statistics.stdev(values) if len(values) > 1 else None
            rows.append([name, key, len(values), statistics.mean(values), spread])
    print(tabulate(rows, ["run", "measure", "seeds", "mean, %", "standard deviation"], floatfmt=".2f"))
    return 0


if __name__ == "__main__":
    sys.exit(run())
