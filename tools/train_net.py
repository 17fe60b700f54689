#!/usr/bin/env python
"""Train or evaluate SkySense-O.

python tools/train_net.py --config-file configs/mini/finetune.yaml OUTPUT_DIR output/mini
python tools/train_net.py --config-file configs/mini/finetune.yaml --resume OUTPUT_DIR output/mini
python tools/train_net.py --config-file configs/mini/finetune.yaml --eval-only MODEL.WEIGHTS mini

To train on several machines, give --num-machines, --machine-rank and --dist-url, or use torchrun or accelerate:
torchrun --nproc_per_node 8 tools/train_net.py --config-file configs/mini/finetune.yaml OUTPUT_DIR output/mini
accelerate launch --multi_gpu --num_processes 8 tools/train_net.py --config-file configs/mini/finetune.yaml
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cli.arguments import parser_of
from skysense_o.cli.train import add_train_arguments, run_train
from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    return parser_of(__doc__, add_train_arguments)


def run() -> int:
    return run_train(parser().parse_args())


if __name__ == "__main__":
    sys.exit(exit_code(run))
