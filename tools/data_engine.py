#!/usr/bin/env python
"""Turn unlabelled images into a labelled data set in Sky-SA's format, step by step (data_engine.md).

python tools/data_engine.py all --input "survey/*.jpg" --classes "building|house,road,tree" --work output/survey
python tools/data_engine.py collect --input "survey/*.tif" --licence CC-BY-4.0 --credit "A. Person" --work output/survey
python tools/data_engine.py deduplicate --against ucmerced_test --work output/survey
python tools/data_engine.py propose --method superpixels --work output/survey
python tools/data_engine.py name --open-world --work output/survey
python tools/data_engine.py review --work output/survey
python tools/data_engine.py graph --work output/survey
python tools/data_engine.py publish --val 0.1 --work output/survey

Each step reads and writes plain files. To resume an interrupted step, run its command again.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cli.arguments import parser_of
from skysense_o.cli.engine import add_engine_arguments, run_engine
from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    return parser_of(__doc__, add_engine_arguments)


def run() -> int:
    return run_engine(parser().parse_args())


if __name__ == "__main__":
    sys.exit(exit_code(run))
