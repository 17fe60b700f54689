#!/usr/bin/env python
"""Segment pictures by free words.

python demo/demo.py --input town.jpg --classes "building|house,road,tree" --output out
python demo/demo.py --input "survey/*.tif" --classes-file words.txt --output out --save overlay,labels,json
python demo/demo.py --input town.jpg --open-world --output out
python demo/demo.py --input town.jpg --classes "solar panel" --background "roof,ground" --threshold 0.4 --output out
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tabulate import tabulate
from tqdm import tqdm

from skysense_o.errors import USER_ERRORS, exit_code, message
from skysense_o.vocabulary import Vocabulary


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--input", nargs="+", required=True, metavar="FILE", help="pictures, folders or globs in quotes")
    words = p.add_mutually_exclusive_group(required=True)
    words.add_argument("--classes", metavar="WORDS", help='"a,b,c"; synonyms with bars: "building|house,road"')
    words.add_argument("--classes-file", metavar="FILE", help="one class a line, synonyms with bars")
    words.add_argument("--dataset", metavar="NAME", help="names and colours of datasets/classes/NAME.json")
    words.add_argument(
        "--open-world", action="store_true", help="names of all kinds: Sky-SA's graph if there, else ours"
    )
    p.add_argument("--output", required=True, metavar="DIR", help="folder for the results; made if need be")
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' (default), a file, or hf://org/repo/file")
    p.add_argument("--trust-checkpoint", action="store_true", help="read old pickles too: runs any code in them")
    p.add_argument("--config-file", metavar="FILE", help="needed for weights that do not hold their config")
    p.add_argument("--save", default="overlay,labels,json", metavar="LIST", help="of overlay,labels,probabilities,json")
    p.add_argument("--threshold", type=float, metavar="T", help="0..1; below it a pixel is 'none' (id 0)")
    p.add_argument("--background", default="", metavar="WORDS", help="words for the rest, which becomes 'none' (id 0)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    p.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="bf16 is faster where supported")
    return p


def stems_of(paths: list[Path]) -> list[str]:
    """Names for the results; pictures that share a stem keep their suffix or folder, so that none is overwritten."""
    stems, taken = [], set()
    for path in paths:
        candidates = [path.stem, path.name.replace(".", "_"), f"{path.parent.name}_{path.stem}"]
        stem = next((c for c in candidates if c not in taken), None) or f"{path.stem}_{len(taken)}"
        taken.add(stem)
        stems.append(stem)
    return stems


def words_of(args: argparse.Namespace):
    """(vocabulary, colours or None) from whichever option gave the words."""
    background = [word for word in args.background.split(",") if args.background.strip()]
    if args.dataset:
        from skysense_o.data.classes import load_classes

        table = load_classes(args.dataset)
        return Vocabulary.of([(n, *s) for n, s in zip(table.names, table.synonyms)], background), table.colors
    if args.open_world:
        return open_world(background)
    if args.classes_file:
        if not Path(args.classes_file).is_file():
            raise FileNotFoundError(f"no file of class names at {args.classes_file!r}")
        lines = Path(args.classes_file).read_text().splitlines()
        return Vocabulary.of([line for line in lines if line.strip()], background), None
    return Vocabulary.parse(args.classes, args.background), None


def open_world(background: list[str]):
    """(vocabulary, colours or None): the names of Sky-SA's relation graph where it is, else of open_world.json."""
    from skysense_o.data.catalog import row_of
    from skysense_o.data.classes import load_classes
    from skysense_o.data.relation_graph import load_graph

    row = row_of("skysa")
    if (row.place / row.graph).is_file():
        return Vocabulary.of(load_graph(row.place / row.graph).names, background), None
    table = load_classes("open_world")
    return Vocabulary.of([(n, *s) for n, s in zip(table.names, table.synonyms)], background), table.colors


def check(args: argparse.Namespace) -> list[str]:
    """The formats to save; errors that need no model come first, so that nothing is loaded or written in vain."""
    from skysense_o.inference.export import FORMATS

    formats = [word.strip() for word in args.save.split(",") if word.strip()]
    unknown = [word for word in formats if word not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"--save {args.save!r}: {unknown or 'nothing'} is not among {', '.join(FORMATS)}")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold} is out of range: 0 to 1")
    ancestors = [Path(args.output), *Path(args.output).parents]
    blocked = next((p for p in ancestors if p.exists() and not p.is_dir()), None)
    if blocked:
        raise ValueError(f"--output {args.output!r}: {str(blocked)!r} is a file: give a folder")
    return formats


def run() -> int:
    args = parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    vocabulary, colors = words_of(args)
    from skysense_o.inference.export import save
    from skysense_o.inference.pictures import find_pictures, read_picture
    from skysense_o.inference.predictor import Predictor

    formats, pictures = check(args), find_pictures(args.input)
    if len(pictures) == 1:  # its error is the error of the whole call, and is known before the model is loaded
        read_picture(pictures[0])
    predictor = Predictor.from_pretrained(
        args.weights, args.device, args.config_file, args.precision, args.trust_checkpoint
    )
    settings = {
        "weights": predictor.source,
        "weights_sha256": predictor.sha256,
        "words": [list(phrases) for phrases in vocabulary.phrases],
        "background": list(vocabulary.background),
        "precision": args.precision,
        "device": str(predictor.model.device),
    }
    failed: list[str] = []
    progress = tqdm(list(zip(pictures, stems_of(pictures))), unit="picture", disable=len(pictures) == 1)
    for path, stem in progress:
        try:
            image = read_picture(path)
            found = predictor(image, vocabulary, threshold=args.threshold, probabilities="probabilities" in formats)
            record = {**settings, "threshold": found.threshold, "input": path.name}
            written = save(found, image, Path(args.output), stem, formats, record, colors)
        except USER_ERRORS as error:
            failed.append(f"error: {message(error)}")
            continue
        areas = [row for row in found.areas() if row["pixels"] or not args.open_world]
        rows = [(row["name"], row["pixels"], f"{100 * row['share']:.1f} %") for row in areas]
        tqdm.write("\n".join(str(p) for p in written))
        tqdm.write(tabulate(rows, ["class", "pixels", "share"], intfmt=",", colalign=("left", "right", "right")))
    if failed:
        print("\n".join(failed), file=sys.stderr)
    return 0 if not failed else 2 if len(pictures) == 1 else 1


if __name__ == "__main__":
    sys.exit(exit_code(run))
