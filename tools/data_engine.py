#!/usr/bin/env python
"""Label pictures with a model, in the shape of Sky-SA, for people to correct.

python tools/data_engine.py --input "survey/*.jpg" --classes "building|house,road,tree" --work output/survey
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from skysense_o.errors import exit_code
from skysense_o.vocabulary import Vocabulary


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--input", nargs="+", required=True, metavar="FILE", help="pictures, folders or globs in quotes")
    p.add_argument("--classes", required=True, metavar="WORDS", help='"a,b,c"; synonyms with bars')
    p.add_argument("--background", default="", metavar="WORDS", help="words for the rest; never written")
    p.add_argument("--work", required=True, metavar="DIR", help="folder of the set; an interrupted run goes on there")
    p.add_argument("--confidence", type=float, default=0.5, help="below it a pixel is left to people (default: 0.5)")
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' or a file (default: mini)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    return p


def run() -> int:
    args = parser().parse_args()
    vocabulary = Vocabulary.parse(args.classes, args.background)

    from skysense_o.data_engine.pseudo_labels import label_pictures
    from skysense_o.inference.pictures import find_pictures
    from skysense_o.inference.predictor import Predictor

    pictures = find_pictures(args.input)
    predictor = Predictor.from_pretrained(args.weights, args.device)
    options = {"confidence": args.confidence}
    records = label_pictures(predictor, tqdm(pictures, unit="picture"), vocabulary, Path(args.work), **options)
    results = list(records)
    errors = [record["error"] for record in results if "error" in record]
    regions = sum(len(record.get("ann_list", ())) for record in results)
    print(f"{len(results) - len(errors)} pictures, {regions} regions -> {Path(args.work) / 'skysa_dataset.jsonl'}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
