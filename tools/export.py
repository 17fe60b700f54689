#!/usr/bin/env python
"""Export a model to ONNX, to compute one mask per phrase from an image and text embeddings without torch.

  python tools/export.py --output mini.onnx
  python tools/export.py --weights output/mini/model_final.safetensors --output mine.onnx --words "building|house,road"

mini.json, in the same folder, describes inputs and outputs. --words also writes text embeddings (mini.npz: names,
phrases, phrase_to_class, text), so that a program that uses the file needs no language model. The exported file is
checked against torch with onnxruntime.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cli.arguments import parser_of
from skysense_o.cli.export import add_export_arguments, run_export
from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    return parser_of(__doc__, add_export_arguments)


def run() -> int:
    return run_export(parser().parse_args())


if __name__ == "__main__":
    sys.exit(exit_code(run))
