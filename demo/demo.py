#!/usr/bin/env python
"""Segment images with classes in words.

python demo/demo.py --input town.jpg --classes "building|house,road,tree" --output out
python demo/demo.py --input "survey/*.tif" --classes-file words.txt --output out --save overlay,labels,json
python demo/demo.py --input town.jpg --open-world --output out
python demo/demo.py --input town.jpg --interactive --output out
python demo/demo.py --input town.jpg --classes "solar panel" --background "roof,ground" --threshold 0.4 --output out
python demo/demo.py --input town.jpg --task classify --dataset ucmerced --output out
python demo/demo.py --input town.jpg --task ask --question "How many planes?" --weights vqa.safetensors --output out
python demo/demo.py --input scene.tif --classes "water,forest" --output out --save geotiff,gpkg,geojson,overlay

A georeferenced file, for instance a GeoTIFF or an image with a world file, is a scene: it may have any size, and the
results have its georeference (docs/large_scenes.md). Run the same command again to resume an interrupted scene.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Nothing here imports torch, so that mistakes on the command line are answered at once.
from tabulate import tabulate
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from skysense_o.errors import exit_code, file_error, is_expected
from skysense_o.image_io import RGBImage, find_images, is_georeferenced, printable, read_image, stems_of
from skysense_o.inference.segmentation import classes_by_id
from skysense_o.scenes.georeference import scene_tools
from skysense_o.scenes.options import SCENE_FORMATS, SceneOptions, SceneOutputs, parse_bytes
from skysense_o.vocabulary import Vocabulary, read_class_file
from skysense_o.weight_paths import find_weights
from skysense_o.whole_files import write_json
from skysense_o.words import check_words, split_words

ALL_FORMATS = ("overlay", "labels", "probabilities", "json", *SCENE_FORMATS)
OPEN_WORLD_SHARE = 0.001
"""With --open-world, classes with a smaller share of the pixels are left out of legend and table."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--input", nargs="+", required=True, metavar="FILE", help="images, folders or globs in quotes")
    words = p.add_mutually_exclusive_group()
    words.add_argument("--classes", metavar="WORDS", help='"a,b,c", with bars between synonyms: "building|house,road"')
    words.add_argument("--classes-file", metavar="FILE", help="one class per line, with bars between synonyms")
    words.add_argument("--dataset", metavar="NAME", help="classes and colors of datasets/classes/NAME.json")
    words.add_argument(
        "--open-world", action="store_true", help="hundreds of classes: those of Sky-SA's graph if present, else ours"
    )
    p.add_argument("--interactive", action="store_true", help="prompt loop for words, points and boxes")
    p.add_argument(
        "--task",
        default="segment",
        choices=("segment", "classify", "ask"),
        help="classify or ask: one answer per image (default: segment)",
    )
    p.add_argument("--question", action="append", metavar="TEXT", help="for --task ask; may be repeated")
    p.add_argument("--output", required=True, metavar="DIR", help="folder for the results; is created if necessary")
    p.add_argument(
        "--weights",
        metavar="W",
        help="a file, hf://org/repo/file, mini or mini_vqa (default: mini_vqa for classify and ask, else mini)",
    )
    p.add_argument("--trust-checkpoint", action="store_true", help="also read pickles, which executes any code in them")
    p.add_argument("--config-file", metavar="FILE", help="config, for weights that do not contain it")
    p.add_argument("--save", default="overlay,labels,json", metavar="LIST", help=f"some of {','.join(ALL_FORMATS)}")
    p.add_argument("--threshold", type=float, metavar="T", help="0..1; less probable pixels become 'none' (id 0)")
    p.add_argument("--background", default="", metavar="WORDS", help="background words, which become 'none' (id 0)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    p.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="bf16 is faster where supported")
    p.add_argument("--window", type=int, metavar="PX", help="segment in windows of PX pixels; always done for scenes")
    p.add_argument("--overlap", type=int, metavar="PX", help="overlap of windows (default: a quarter)")
    p.add_argument(
        "--max-pixels", type=int, metavar="N", help="limit for plain images; 0 for none (default: 178,956,970)"
    )
    scene = p.add_argument_group("scenes")
    scene.add_argument("--bands", metavar="R,G,B", help="band numbers from 1 (default: RGB, else the first three)")
    scene.add_argument("--gsd", type=float, metavar="M", help="resample to M metres per pixel (default: do not)")
    scene.add_argument("--aoi", metavar="FILE", help="area of interest: polygons (GeoJSON, GeoPackage)")
    scene.add_argument("--memory", default="2GiB", metavar="SIZE", help="memory beyond the weights (default: 2GiB)")
    scene.add_argument("--min-area", type=float, default=0.0, metavar="M2", help="leave out smaller regions")
    scene.add_argument("--simplify", type=float, default=0.0, metavar="PX", help="simplify polygons, in pixels")
    scene.add_argument("--remote", action="store_true", help="allow files that refer to network data (WMS, VRT)")
    scene.add_argument("--restart", action="store_true", help="discard the progress of an interrupted run")
    return p


@dataclass(frozen=True)
class Request:
    """The checked arguments.

    Attributes:
        args: of the command line.
        formats: to save.
        paths, stems: of the images, and of their result files.
        scenes: the paths that are segmented as scenes.
        vocabulary: None where no classes are needed.
        colors: RGB per class, or None.
        image: the image, if there is only one and it is not a scene.
    """

    args: argparse.Namespace
    formats: list[str]
    paths: list[Path]
    stems: list[str]
    scenes: frozenset[Path]
    vocabulary: Vocabulary | None
    colors: list | None
    image: RGBImage | None

    @property
    def min_share(self) -> float:
        return OPEN_WORLD_SHARE if self.args.open_world else 0.0

    def outputs(self, stem: str) -> SceneOutputs:
        """Which files to write for a scene."""
        args = self.args
        folder = Path(args.output)
        return SceneOutputs(folder, self.formats, stem, self.colors, args.min_area, args.simplify, self.min_share)


def check(args: argparse.Namespace) -> Request:
    """Check all arguments and files that can be checked without torch.

    Raises:
        ValueError, FileNotFoundError: a wrong argument or missing file. With a single image, also its own errors.
    """
    formats = check_values(args)
    paths = find_images(args.input)
    check_files(args, paths)
    if args.interactive and len(paths) > 1:
        raise ValueError(f"--interactive takes one image and --input gives {len(paths)}")
    vocabulary, colors, image, scenes = None, None, None, frozenset()
    if (args.task == "segment" and not args.interactive) or args.task == "classify":
        vocabulary, colors = vocabulary_of(args)
        classes_by_id(vocabulary, args.threshold)  # no class may have the name of id 0
    if args.task == "segment" and not args.interactive:
        scenes = frozenset(path for path in paths if is_scene(path, formats, args))
        if len(paths) == 1 and not scenes:
            image = read(paths[0], args)
    request = Request(args, formats, paths, stems_of(paths), scenes, vocabulary, colors, image)
    if len(paths) == 1 and scenes:
        scene_tools("check").check_scene(paths[0], request.outputs(""), scene_options(args))
    return request


def check_values(args: argparse.Namespace) -> list[str]:
    """Check the values of options; returns the formats to save."""
    formats = [word.strip() for word in args.save.split(",") if word.strip()]
    unknown = [word for word in formats if word not in ALL_FORMATS]
    if unknown or not formats:
        raise ValueError(f"--save {args.save!r}: {unknown or 'nothing'} is not among {', '.join(ALL_FORMATS)}")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold} is out of range: 0 to 1")
    if min(args.min_area, args.simplify) < 0:
        raise ValueError("--min-area and --simplify are out of range: 0 or more")
    if args.task == "ask" and not all(question.strip() for question in args.question or [""]):
        raise ValueError('--task ask needs --question "..."')
    scene_options(args)
    return formats


def check_files(args: argparse.Namespace, paths: list[Path]) -> None:
    """Check that the files of the command line exist, and that the output folder can be created."""
    if len(paths) == 1 and not paths[0].is_file():
        read_image(paths[0])  # raises the error of a missing image
    if args.config_file and not Path(args.config_file).is_file():
        raise FileNotFoundError(f"no config at {args.config_file!r}: see configs/")
    if args.classes_file and not Path(args.classes_file).is_file():
        raise FileNotFoundError(f"no file of classes at {args.classes_file!r}")
    if args.aoi and not Path(args.aoi).is_file():
        raise FileNotFoundError(f"no area of interest at {args.aoi!r}")
    find_weights(args.weights)
    ancestors = [Path(args.output), *Path(args.output).parents]
    blocked = next((p for p in ancestors if p.exists() and not p.is_dir()), None)
    if blocked:
        raise ValueError(f"--output {args.output!r}: {str(blocked)!r} is a file: give a folder")


def scene_options(args: argparse.Namespace) -> SceneOptions:
    """The options of scenes as the package takes them."""
    try:
        bands = tuple(int(word) for word in args.bands.split(",")) if args.bands else None
    except ValueError as error:
        raise ValueError(f"--bands {args.bands!r} are not numbers: write them as 4,3,2") from error
    memory = parse_bytes(args.memory)
    return SceneOptions(
        bands, args.gsd, args.aoi, args.window, args.overlap, memory, args.threshold, remote=args.remote
    )


def vocabulary_of(args: argparse.Namespace) -> tuple[Vocabulary, list | None]:
    """The vocabulary, and colors or None, from the option that gives the classes."""
    background = split_words(args.background)
    if args.dataset:
        from skysense_o.data.classes import load_classes

        table = load_classes(args.dataset)
        return Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)], background), table.colors
    if args.open_world:
        from skysense_o.data.open_world import open_world

        return open_world(background)
    if args.classes is None and args.classes_file is None:
        raise ValueError("no classes: give --classes, --classes-file, --dataset, --open-world or --interactive")
    if args.classes_file:
        return Vocabulary.of(read_class_file(args.classes_file), background), None
    return Vocabulary.parse(args.classes, args.background), None


def is_scene(path: Path, formats: list[str], args: argparse.Namespace) -> bool:
    """Whether a file is segmented as a scene: in windows, with its georeference.

    Raises:
        ModuleNotFoundError: the options need a scene, and the extra "geo" is not installed.
    """
    required = set(formats) & set(SCENE_FORMATS) or args.bands or args.gsd is not None or args.aoi
    try:
        if not path.is_file() or not (
            required or ("probabilities" not in formats and is_georeferenced(path, args.remote))
        ):
            return False
    except (OSError, ValueError):  # reading the image will report what is wrong
        return False
    try:
        scene_tools("check")
    except ModuleNotFoundError as error:
        if required:
            raise
        logging.warning("%s; %s is read as a plain image, its georeference is lost", error, printable(path.name))
        return False
    return True


def read(path: Path, args: argparse.Namespace) -> RGBImage:
    """Read a plain image, and log how it was converted."""
    image = read_image(path, max_pixels=args.max_pixels)
    for note in image.record.notes:
        logging.warning("%s: %s", printable(path.name), note)
    return image


def run() -> int:
    args = parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("skysense_o").setLevel(logging.INFO)
    logging.getLogger("rasterio").setLevel(logging.ERROR)  # GDAL warns about harmless oddities of TIFFs
    args.weights = args.weights or ("mini" if args.task == "segment" else "mini_vqa")
    try:
        request = check(args)
    except Exception as error:
        if is_expected(error):
            raise
        print(f"error: {file_error(error, printable(Path(args.input[0]).name))}", file=sys.stderr)
        return 1
    if args.task != "segment":
        return whole_images(request)
    return interactive(request) if args.interactive else segment(request)


def load_predictor(args: argparse.Namespace):
    from skysense_o.inference.predictor import Predictor

    return Predictor.from_pretrained(args.weights, args.device, args.config_file, args.precision, args.trust_checkpoint)


def segment(request: Request) -> int:
    """Segment all images; a bad image does not stop the others."""
    from skysense_o.inference.export import listed

    predictor = load_predictor(request.args)
    processes = None
    if "WORLD_SIZE" in os.environ:  # started by torchrun or Accelerate
        from accelerate import PartialState

        processes = PartialState(cpu=predictor.model.device.type == "cpu")

    def one(path: Path, stem: str) -> None:
        if path in request.scenes:
            written, rows = segment_scene(request, predictor, path, stem, processes)
        else:
            written, rows = segment_image(request, predictor, path, stem)
        rows = listed(rows, request.min_share)
        tqdm.write("\n".join([*map(printable, written), *([table_of(rows)] if rows else [])]))

    return each(request, one)


def each(request: Request, work: Callable[[Path, str], None]) -> int:
    """Call work(path, stem) for each image. One that fails does not end the batch; its error is printed at the end.

    Returns:
        The exit code: 2 for a mistake in the only image, 1 if images of a batch failed or an error was unexpected.
    """
    jobs, failed = list(zip(request.paths, request.stems)), []
    code = 2 if len(jobs) == 1 else 1
    with logging_redirect_tqdm():
        for path, stem in tqdm(jobs, unit="image", disable=True if len(jobs) == 1 else None):
            try:
                work(path, stem)
            except Exception as error:
                failed.append(f"error: {file_error(error, printable(path.name))}")
                code = code if is_expected(error) else 1
    if failed:
        print("\n".join(failed), file=sys.stderr)
    return code if failed else 0


def segment_image(request: Request, predictor, path: Path, stem: str) -> tuple[list[Path], list[dict]]:
    """Segment a plain image; returns the written files and one row per class."""
    from skysense_o.inference.export import save

    args, vocabulary = request.args, request.vocabulary
    image = request.image or read(path, args)
    segmentation = predictor(
        image,
        vocabulary,
        threshold=args.threshold,
        probabilities="probabilities" in request.formats,
        window=args.window,
        overlap=args.overlap,
    )
    settings = {
        "weights": predictor.source,
        "weights_sha256": predictor.sha256,
        "words": [list(phrases) for phrases in vocabulary.phrases],
        "background": list(vocabulary.background),
        "precision": args.precision,
        "device": str(predictor.model.device),
        "threshold": segmentation.threshold,
        "input": printable(path.name),
    }
    folder, colors, share = Path(args.output), request.colors, request.min_share
    written = save(segmentation, image.rgb, folder, stem, request.formats, settings, colors, share)
    return written, segmentation.areas()


def segment_scene(request: Request, predictor, path: Path, stem: str, processes) -> tuple[list[Path], list[dict]]:
    """Segment a scene; returns the written files and one row per class."""
    return scene_tools().run_scene(
        predictor,
        path,
        request.vocabulary,
        request.outputs(stem),
        scene_options(request.args),
        restart=request.args.restart,
        processes=processes,
    )


def interactive(request: Request) -> int:
    """The prompt loop, for one image."""
    from skysense_o.data.open_world import open_world
    from skysense_o.interactive.dialogue import Dialogue
    from skysense_o.interactive.opening import open_upload
    from skysense_o.interactive.session import Session

    args = request.args
    image = open_upload(request.paths[0], alone=False)
    session = Session(load_predictor(args), image)
    loop = Dialogue(session, Path(args.output), lambda: open_world()[0])
    try:
        if args.classes:
            loop.cmdqueue.append(f"words {args.classes}")
        loop.cmdloop()
    finally:
        session.close()
    return 0


def whole_images(request: Request) -> int:
    """--task classify ranks classes per image; --task ask answers questions about each image."""
    import torch

    from skysense_o.device import choose_device
    from skysense_o.inference.classify import classify, load_vqa_model

    args = request.args
    if args.task == "ask":
        check_words(args.question)
        model = load_vqa_model(args.weights, args.device, args.config_file, args.trust_checkpoint)
    else:
        model = load_predictor(args).model

    def one(path: Path, stem: str) -> None:
        image, file, name = (
            read(path, args).filled(),
            Path(args.output) / f"{stem}_{args.task}.json",
            printable(path.name),
        )
        body = {"input": name, "weights": args.weights}
        with torch.autocast(choose_device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
            if args.task == "ask":
                pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
                answers = model.answer([pixels] * len(args.question), args.question)
                body["answers"] = [{"question": q, "answer": a} for q, a in zip(args.question, answers, strict=True)]
                text = "\n".join(f"{name}: {row['question']} {row['answer']}" for row in body["answers"])
            else:
                rows = classify(model, image, request.vocabulary.classes)
                body["names"] = [{"name": word, "cosine": round(score, 4)} for word, score in rows]
                text = f"{name}\n{tabulate(rows[:10], ['name', 'cosine'], floatfmt='.3f')}"
        write_json(file, body)
        tqdm.write(f"{text}\n{printable(file)}")

    return each(request, one)


def table_of(rows: list[dict]) -> str:
    """A table of class, pixels, share, and square metres where they are known."""
    columns, known = ["class", "pixels", "share"], rows[0].get("area_m2") is not None
    lines = [
        [row["name"], row["pixels"], f"{100 * row['share']:.1f} %", *([f"{row['area_m2']:,.0f}"] if known else [])]
        for row in rows
    ]
    columns += ["m2"] if known else []
    return tabulate(lines, columns, intfmt=",", colalign=("left", *["right"] * (len(columns) - 1)))


if __name__ == "__main__":
    sys.exit(exit_code(run))
