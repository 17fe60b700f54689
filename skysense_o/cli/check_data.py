"""Check a data set, and print a manifest to compare with other copies."""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser, Namespace
from pathlib import Path

from tabulate import tabulate

from skysense_o.whole_files import write_text


def add_check_arguments(p: ArgumentParser) -> None:
    """Add the options of tools/check_dataset.py."""
    p.add_argument("name", nargs="?", help="a data set, one of its splits, or the path of a folder with dataset.yaml")
    p.add_argument("--list", action="store_true", help="list all known data sets, one per line")
    p.add_argument("--markdown", action="store_true", help="with --list: print the table of datasets/README.md")
    p.add_argument("--json", metavar="FILE", help="also write the manifest to this file")
    p.add_argument("--limit", type=int, metavar="N", help="check only N records per split")


def _list_rows(markdown: bool) -> str:
    """The table of all known data sets, one line each."""
    from skysense_o.data.catalog import SPECS

    if not markdown:
        return tabulate([(r.name, r.task, ", ".join(r.splits), r.licence) for r in SPECS], tablefmt="plain")
    lines = ["| name | task | splits (images) | m per pixel | licence | size | command |", "|" + "---|" * 7]
    for spec in SPECS:
        main = {s: n for s in spec.splits if not s.startswith(("scene", "without")) for n in [spec.counts.get(s)]}
        splits = ", ".join(f"{s} ({n:,})" if n else s for s, n in main.items())
        command = f"`{spec.prepare}`" if spec.prepare else "as published"
        name = f"[{spec.name}]({spec.homepage})"
        lines.append(f"| {name} | {spec.task} | {splits} | {spec.gsd} | {spec.licence} | {spec.size} | {command} |")
    return "\n".join(lines)


def run_check(args: Namespace) -> int:
    """Check a data set, or list all data sets; the exit code is 1 if there is a problem."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if args.list:
        print(_list_rows(args.markdown))
        return 0
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit} is out of range: 1 or more")
    if not args.name:
        raise ValueError("give the name of a data set, or --list")
    import skysense_o.data  # noqa: F401  (registers the rows)
    from skysense_o.data.check import check_data_set, histogram

    reports = check_data_set(args.name, args.limit)
    rows = [
        (r.name, r.images, "x".join(map(str, r.smallest)), "x".join(map(str, r.largest)), r.sha256[:16])
        for r in reports
    ]
    print(tabulate(rows, ["split", "images", "smallest", "largest (h x w)", "sha256"]))
    headers = ["class", *(h for r in reports for h in (f"{r.name} %", "in"))]
    print("\n" + tabulate(histogram(reports), headers, floatfmt=".2f"))
    for report in reports:
        for note in report.notes:
            print(f"note: {report.name}: {note}")
        for problem in report.problems:
            print(f"wrong: {report.name}: {problem}")
    if args.json:
        write_text(Path(args.json), json.dumps([r.manifest() for r in reports], indent=1) + "\n")
    wrong = sum(len(report.problems) for report in reports)
    print(f"\n{wrong or 'nothing'} wrong")
    return 1 if wrong else 0
