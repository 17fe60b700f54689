"""`python -m skysense_o` is `skysense-o`."""

import sys

from skysense_o.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command())
