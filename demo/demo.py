#!/usr/bin/env python
"""Segment images by classes that are given as words.

python demo/demo.py --input town.jpg --classes "building|house,road,tree" --output out
python demo/demo.py --input "survey/*.tif" --classes-file words.txt --output out --save overlay,labels,json
python demo/demo.py --input town.jpg --open-world --output out
python demo/demo.py --input town.jpg --interactive --output out
python demo/demo.py --input town.jpg --classes "solar panel" --background "roof,ground" --threshold 0.4 --output out
python demo/demo.py --input town.jpg --task classify --dataset ucmerced --output out
python demo/demo.py --input town.jpg --task ask --question "How many planes?" --weights vqa.safetensors --output out
python demo/demo.py --input scene.tif --classes "water,forest" --output out --save geotiff,gpkg,geojson,overlay

A georeferenced file, such as a GeoTIFF or an image with a world file, is processed as a scene: it may have any size,
and the results are georeferenced, too (docs/large_scenes.md). To resume an interrupted scene, run the same command
again.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skysense_o.cli.arguments import add_demo_arguments, parser_of
from skysense_o.cli.segment import run_task
from skysense_o.errors import exit_code


def parser() -> argparse.ArgumentParser:
    return parser_of(__doc__, add_demo_arguments)


def run() -> int:
    return run_task(parser().parse_args())


if __name__ == "__main__":
    sys.exit(exit_code(run))
