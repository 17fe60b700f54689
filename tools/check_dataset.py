#!/usr/bin/env python
"""Check a data set without changing it, and print a manifest for comparison with other copies.

python tools/check_dataset.py --list
python tools/check_dataset.py dubai
python tools/check_dataset.py loveda_val --json loveda_val.json
python tools/check_dataset.py path/to/my/folder

The script reports images without labels, truncated files, labels that differ in size from their image, ids out of
range, classes without pixels, and images that look the same in two splits. The exit code is 1 if there is a problem.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cli.arguments import parser_of
from skysense_o.cli.check_data import add_check_arguments, run_check
from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    return parser_of(__doc__, add_check_arguments)


def run() -> int:
    return run_check(parser().parse_args())


if __name__ == "__main__":
    sys.exit(exit_code(run))
