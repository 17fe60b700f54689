#!/usr/bin/env python
"""Check installation, weights and data, and print how to get what is missing. Exit code 1 if the demo cannot run.

python tools/doctor.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cli.arguments import parser_of
from skysense_o.cli.doctor import add_doctor_arguments, run_doctor
from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    return parser_of(__doc__, add_doctor_arguments)


def run() -> int:
    return run_doctor(parser().parse_args())


if __name__ == "__main__":
    sys.exit(exit_code(run))
