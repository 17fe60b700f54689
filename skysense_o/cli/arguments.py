"""Options of segment, scene, classify and ask, which demo/demo.py has as well."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable

from skysense_o.scenes.options import SCENE_FORMATS

ALL_FORMATS = ("overlay", "labels", "probabilities", "json", *SCENE_FORMATS)
TASKS = ("segment", "classify", "ask")


def parser_of(description: str, add_arguments: Callable[[ArgumentParser], None]) -> ArgumentParser:
    """A parser that shows its description as it is written."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    add_arguments(parser)
    return parser


def add_demo_arguments(p: ArgumentParser) -> None:
    """Add the options of demo/demo.py: the options of all tasks."""
    p.add_argument("--input", nargs="+", required=True, metavar="FILE", help=INPUT)
    _words(p)
    _interactive(p)
    p.add_argument(
        "--task", default="segment", choices=TASKS, help="classify or ask: one answer per image (default: segment)"
    )
    _question(p, "for --task ask; may be repeated")
    p.add_argument("--output", required=True, metavar="DIR", help="folder for the results; is created if necessary")
    _model(
        p, "a file, hf://org/repo/file, org/repo, mini or mini_vqa (default: mini_vqa for classify and ask, else mini)"
    )
    _save(p, "overlay,labels,json")
    _segmentation(p)
    _limit(p)
    _scenes(p)


def add_segment_arguments(p: ArgumentParser, save: str = "overlay,labels,json") -> None:
    """Add the options of `skysense-o segment`.

    Args:
        save: default formats.
    """
    _files(p)
    _words(p)
    _interactive(p)
    _model(p, WEIGHTS.format("mini"))
    _save(p, save)
    _segmentation(p)
    _limit(p)
    _scenes(p)
    p.set_defaults(task="segment", question=None)


def add_scene_arguments(p: ArgumentParser) -> None:
    """Add the options of `skysense-o scene`: the same as for segment, with other default formats of --save."""
    add_segment_arguments(p, "geotiff,gpkg,overlay,json")


def add_classify_arguments(p: ArgumentParser) -> None:
    """Add the options of `skysense-o classify`."""
    _files(p)
    _words(p)
    _model(p, WEIGHTS.format("mini_vqa"))
    _limit(p)
    p.set_defaults(**_of_segmentation(), task="classify", question=None, interactive=False)


def add_ask_arguments(p: ArgumentParser) -> None:
    """Add the options of `skysense-o ask`."""
    _files(p)
    _question(p, "may be repeated", required=True)
    _model(p, WEIGHTS.format("mini_vqa"))
    _limit(p)
    words = dict.fromkeys(("classes", "classes_file", "dataset"))
    p.set_defaults(**_of_segmentation(), **words, task="ask", open_world=False, interactive=False)


INPUT = "images, folders, globs in quotes, or a STAC item (item.json)"
WEIGHTS = "a file, hf://org/repo/file, org/repo, mini or mini_vqa (default: {})"


def _files(p: ArgumentParser) -> None:
    p.add_argument("files", nargs="*", metavar="FILE", help=INPUT)
    p.add_argument("--input", nargs="+", default=[], metavar="FILE", help="another way to give the input files")
    p.add_argument("--output", default="output", metavar="DIR", help="folder for the results (default: output)")


def _words(p: ArgumentParser) -> None:
    words = p.add_mutually_exclusive_group()
    words.add_argument("--classes", metavar="WORDS", help='"a,b,c", with bars between synonyms: "building|house,road"')
    words.add_argument("--classes-file", metavar="FILE", help="one class per line, with bars between synonyms")
    words.add_argument("--dataset", metavar="NAME", help="classes and colors of datasets/classes/NAME.json")
    words.add_argument(
        "--open-world",
        action="store_true",
        help="hundreds of classes: those of Sky-SA's relation graph if it is present, else a shipped list",
    )


def _interactive(p: ArgumentParser) -> None:
    p.add_argument("--interactive", action="store_true", help="prompt loop for words, points and boxes")


def _question(p: ArgumentParser, text: str, required: bool = False) -> None:
    p.add_argument("--question", action="append", required=required, metavar="TEXT", help=text)


def _model(p: ArgumentParser, weights: str) -> None:
    p.add_argument("--weights", metavar="W", help=weights)
    p.add_argument("--trust-checkpoint", action="store_true", help="also read pickles, which executes any code in them")
    p.add_argument("--config-file", metavar="FILE", help="config of the model, for weights files without a config")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    p.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="bf16 is faster where supported")
    add_backend(p)


def add_backend(p: ArgumentParser) -> None:
    """Add the option --backend, which selects the runtime of the image encoder of `mini`."""
    text = "runtime for the image encoder of mini on a CPU; auto: onnx, or openvino for bf16 with AMX (default: torch)"
    p.add_argument("--backend", default="torch", choices=("torch", "onnx", "openvino", "auto"), help=text)


def _save(p: ArgumentParser, default: str) -> None:
    text = f"some of {','.join(ALL_FORMATS)} (default: {default})"
    p.add_argument("--save", default=default, metavar="LIST", help=text)


def _segmentation(p: ArgumentParser) -> None:
    p.add_argument("--threshold", type=float, metavar="T", help="0..1; less probable pixels become 'none' (id 0)")
    p.add_argument("--background", default="", metavar="WORDS", help="background words, which become 'none' (id 0)")
    p.add_argument("--window", type=int, metavar="PX", help="segment in windows of PX pixels; always done for scenes")
    p.add_argument("--overlap", type=int, metavar="PX", help="overlap of windows (default: a quarter)")
    p.add_argument(
        "--pixel-size", type=float, metavar="M",
        help="metres per pixel of plain images; images with much finer pixels than the training images are reduced",
    )  # fmt: skip


def _limit(p: ArgumentParser) -> None:
    p.add_argument(
        "--max-pixels", type=int, metavar="N", help="most pixels of a plain image; 0: no limit (default: 178,956,970)"
    )
    p.add_argument(
        "--asset", metavar="KEY", help="which asset of a STAC item is the image (default: the only image asset)"
    )


def _scenes(p: ArgumentParser) -> None:
    scene = p.add_argument_group("scenes")
    scene.add_argument("--bands", metavar="R,G,B", help="band numbers from 1 (default: RGB, else the first three)")
    scene.add_argument("--gsd", type=float, metavar="M", help="resample to M metres per pixel (default: no resampling)")
    scene.add_argument("--aoi", metavar="FILE", help="area of interest: polygons (GeoJSON, GeoPackage)")
    scene.add_argument("--memory", default="2GiB", metavar="SIZE", help="memory beyond the weights (default: 2GiB)")
    scene.add_argument(
        "--min-area",
        type=float,
        default=0.0,
        metavar="M2",
        help="leave out regions of fewer square metres (of fewer pixels, if the location on the ground is unknown)",
    )
    scene.add_argument("--simplify", type=float, default=0.0, metavar="PX", help="simplify polygons, in pixels")
    scene.add_argument("--remote", action="store_true", help="allow files that refer to network data (WMS, VRT)")
    scene.add_argument("--restart", action="store_true", help="discard the progress of an interrupted run")


def _of_segmentation() -> dict:
    """The defaults of the options that only segmentation has."""
    p = ArgumentParser()
    _save(p, "json")
    _segmentation(p)
    _scenes(p)
    return vars(p.parse_args([]))
