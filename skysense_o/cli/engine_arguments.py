"""Options of the data engine's steps."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from pathlib import Path

from skysense_o.cli.cluster import add_cluster_arguments
from skysense_o.data_engine.review import cli as review_cli


def add_engine_arguments(p: ArgumentParser) -> None:
    """Add one command per step of the data engine, with the options of the step."""
    steps = p.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, (text, groups) in STEPS.items():
        step = steps.add_parser(name, help=text, description=text)
        step.add_argument("--work", required=True, metavar="DIR", help="work folder of all steps; created if missing")
        if name != "review":  # reviewers' decisions are never deleted
            step.add_argument(
                "--restart",
                action="store_true",
                help="delete the files of this step and all later steps, and repeat this step",
            )
        for add in groups:
            add(step)


def _input(p: ArgumentParser) -> None:
    p.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="images, rasters, folders, globs in quotes"
    )
    p.add_argument("--tile", type=int, default=512, metavar="PX", help="longest side of a tile (default: 512)")
    p.add_argument("--licence", default="", metavar="TEXT", help="licence of the input images, for the catalogue")
    p.add_argument(
        "--credit", default="", metavar="TEXT", help="author or owner of the input images, for the catalogue"
    )
    p.add_argument("--gsd", type=float, metavar="M", help="metres per pixel of images that are not georeferenced")


def _duplicates(p: ArgumentParser) -> None:
    p.add_argument(
        "--bits",
        type=int,
        default=8,
        metavar="N",
        help="two tiles are duplicates if at most N of 256 hash bits differ (default: 8)",
    )
    p.add_argument(
        "--distance", type=float, default=0.005, help="largest 1 - cosine of duplicates' embeddings (default: 0.005)"
    )
    p.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets: leave out tiles that are similar to their images",
    )
    p.add_argument("--hashes-only", action="store_true", help="compare hashes only: fast, but misses shifted copies")


def _regions(p: ArgumentParser) -> None:
    p.add_argument(
        "--method",
        choices=("superpixels", "words", "everything", "sam"),
        help="how to find regions (default: words with --classes or --dataset, else superpixels)",
    )
    p.add_argument(
        "--least",
        type=int,
        default=100,
        metavar="PX",
        help="merge regions of fewer than PX pixels into others (default: 100)",
    )
    p.add_argument(
        "--coarse",
        type=float,
        default=1.0,
        help="for superpixels: above 1 gives fewer regions, below 1 more (default: 1)",
    )
    p.add_argument("--sam", type=Path, metavar="FILE", help="for sam: a Segment Anything checkpoint")


def _words(p: ArgumentParser) -> None:
    words = p.add_mutually_exclusive_group()
    words.add_argument("--classes", metavar="WORDS", help='classes, "a,b,c"; synonyms with bars, "a|b,c"')
    words.add_argument("--dataset", metavar="NAME", help="classes of datasets/classes/NAME.json")
    words.add_argument("--open-world", action="store_true", help="some 370 classes of all kinds (the default)")
    p.add_argument("--background", default="", metavar="WORDS", help="background classes, which are never written")


def _naming(p: ArgumentParser) -> None:
    p.add_argument(
        "--by",
        default="masks",
        choices=("masks", "features", "tower", "vlm", "service"),
        help="what names regions: the model's masks (default) or features; an image-text tower; a local vision-language"
        " model (vlm); a vision-language model behind HTTP (service)",
    )
    p.add_argument(
        "--tower",
        default="mini_vqa",
        metavar="W",
        help="for tower: weights with an image-text tower (default: mini_vqa)",
    )
    p.add_argument("--vlm", type=Path, metavar="DIR", help="for vlm: a folder with an image-text-to-text model")
    p.add_argument("--vlm-name", default="", metavar="NAME", help="for service: the model's name on the server")
    p.add_argument(
        "--synonyms",
        type=float,
        metavar="COS",
        help="merge names whose text embeddings have a cosine of at least COS (default: 0.85 for free text, else"
        " no merging)",
    )
    p.add_argument(
        "--graph", metavar="FILE", help="relation graph; names that the graph scores as dissimilar are not merged"
    )


def _sure(p: ArgumentParser) -> None:
    p.add_argument("--confidence", type=float, default=0.5, help="lowest confidence of unreviewed names (default: 0.5)")


def _publishing(p: ArgumentParser) -> None:
    p.add_argument("--val", type=float, default=0.1, help="share of tiles for validation (default: 0.1)")
    p.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    p.add_argument(
        "--group",
        default="",
        metavar="REGEX",
        help=r'keep files in one split if REGEX matches the same text in their names: "(scene\d+)_"',
    )
    p.add_argument("--title", default="", help="title of the data sheet")


def _model(p: ArgumentParser) -> None:
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' or a file (default: mini)")
    p.add_argument("--config-file", metavar="FILE", help="config of the model, for weights files without a config")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")


STEPS: dict[str, tuple[str, Iterable[Callable[[ArgumentParser], None]]]] = {
    "collect": ("cut images and rasters into tiles and list them in a catalogue", [_input]),
    "deduplicate": ("leave out near duplicates and images of test sets", [_duplicates, _model]),
    "propose": ("divide each tile into regions", [_regions, _words, _model, add_cluster_arguments]),
    "name": ("give each region a name, a confidence and candidates", [_naming, _words, _model, add_cluster_arguments]),
    "review": ("let people accept, rename, merge, split or reject regions", [review_cli.add_arguments]),
    "graph": ("score the similarity of all classes from 1 to 10", [_sure, _model]),
    "publish": ("write the data set: images, labels, split, statistics, data sheet", [_sure, _publishing]),
    "all": (
        "run every step except review",
        [_input, _duplicates, _regions, _naming, _words, _sure, _publishing, _model, add_cluster_arguments],
    ),
}
"""Name of each step -> its help text and option groups."""
