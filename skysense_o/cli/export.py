"""Export a model to ONNX."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np

from skysense_o.errors import install_extra
from skysense_o.vocabulary import Vocabulary
from skysense_o.whole_files import check_writable, whole

SHAPES = ((1, 2, 3, 1), (2, 5, 4, 7), (1, 1, 7, 200))  # B, H and W (as multiples of the divisor), T


def add_export_arguments(p: ArgumentParser) -> None:
    """Add the options of tools/export.py."""
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' or a file (default: mini)")
    p.add_argument("--output", required=True, metavar="FILE", help="file to write, ending in .onnx")
    p.add_argument("--words", default="", metavar="WORDS", help='also write text embeddings of "a,b|synonym,c" as .npz')


def run_export(args: Namespace) -> int:
    """Write the model to an ONNX file as the options say, and return the exit code."""
    path = Path(args.output)
    if path.suffix != ".onnx":
        raise ValueError(f"--output {args.output!r} ends in {path.suffix!r}: write a name that ends in .onnx")
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: {install_extra('onnx')}") from error
    vocabulary = Vocabulary.parse(args.words) if args.words else None
    check_writable(path.parent)

    from skysense_o.inference.onnx import TOLERANCE, difference, embed_words, export_onnx
    from skysense_o.inference.predictor import Predictor

    predictor = Predictor.from_pretrained(args.weights, "cpu")
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = export_onnx(predictor, path)
    n = facts["divisor"]
    worst = difference(predictor, path, [(b, h * n, w * n, t) for b, h, w, t in SHAPES])
    if worst > TOLERANCE:
        raise ValueError(f"{path} differs from torch by {worst:.1e} (permitted: {TOLERANCE:.0e}): do not use it")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, differs from torch by {worst:.1e}; {path.with_suffix('.json')}")
    if vocabulary is not None:
        words = {
            "names": np.array(vocabulary.classes),
            "phrases": np.array([p for ps in vocabulary.phrases for p in ps]),
        }
        text = embed_words(predictor, vocabulary)
        with whole(path.with_suffix(".npz")) as part, open(part, "wb") as file:
            np.savez(file, **words, phrase_to_class=np.array(vocabulary.phrase_to_class), text=text)
        print(f"{len(text)} phrases -> {path.with_suffix('.npz')}")
    return 0
