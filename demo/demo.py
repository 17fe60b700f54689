#!/usr/bin/env python
"""Segment images by free words.

python demo/demo.py --input town.jpg --classes "building|house,road,tree" --output out
python demo/demo.py --input "survey/*.tif" --classes-file words.txt --output out --save overlay,labels,json
python demo/demo.py --input town.jpg --open-world --output out
python demo/demo.py --input town.jpg --interactive --output out
python demo/demo.py --input town.jpg --classes "solar panel" --background "roof,ground" --threshold 0.4 --output out
python demo/demo.py --input town.jpg --task classify --dataset ucmerced --output out
python demo/demo.py --input town.jpg --task ask --question "How many planes?" --weights vqa.safetensors --output out
python demo/demo.py --input scene.tif --classes "water,forest" --output out --save geotiff,gpkg,geojson,overlay

A GeoTIFF, or an image with a world file, is a scene: of any size, kept in its place (docs/large_scenes.md). An
interrupted scene goes on where it stopped when the same command is given again.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tabulate import tabulate
from tqdm import tqdm

from skysense_o.errors import USER_ERRORS, exit_code, message
from skysense_o.image_io import RGBImage, find_images, is_georeferenced, printable, read_image
from skysense_o.scenes.georeference import SCENE_FORMATS, scene_tools
from skysense_o.vocabulary import Vocabulary

ALL_FORMATS = ("overlay", "labels", "probabilities", "json", *SCENE_FORMATS)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--input", nargs="+", required=True, metavar="FILE", help="images, folders or globs in quotes")
    words = p.add_mutually_exclusive_group()
    words.add_argument("--classes", metavar="WORDS", help='"a,b,c"; synonyms with bars: "building|house,road"')
    words.add_argument("--classes-file", metavar="FILE", help="one class a line, synonyms with bars")
    words.add_argument("--dataset", metavar="NAME", help="names and colours of datasets/classes/NAME.json")
    words.add_argument(
        "--open-world", action="store_true", help="names of all kinds: Sky-SA's graph if there, else ours"
    )
    p.add_argument("--interactive", action="store_true", help="ask line by line: words, points, boxes (help tells)")
    p.add_argument(
        "--task",
        default="segment",
        choices=("segment", "classify", "ask"),
        help="classify, ask: whole images, by mini_vqa",
    )
    p.add_argument(
        "--question",
        action="append",
        metavar="TEXT",
        help="for --task ask, as often as liked (default weights: mini_vqa)",
    )
    p.add_argument("--output", required=True, metavar="DIR", help="folder for the results; made if need be")
    p.add_argument(
        "--weights",
        metavar="W",
        help="a file, hf://org/repo/file, or mini, mini_vqa (default: which of them can do it)",
    )
    p.add_argument("--trust-checkpoint", action="store_true", help="read old pickles too: runs any code in them")
    p.add_argument("--config-file", metavar="FILE", help="needed for weights that do not hold their config")
    p.add_argument("--save", default="overlay,labels,json", metavar="LIST", help=f"of {','.join(ALL_FORMATS)}")
    p.add_argument("--threshold", type=float, metavar="T", help="0..1; below it a pixel is 'none' (id 0)")
    p.add_argument("--background", default="", metavar="WORDS", help="words for the rest, which becomes 'none' (id 0)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    p.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="bf16 is faster where supported")
    p.add_argument("--window", type=int, metavar="PX", help="see images in windows of PX pixels; scenes always are")
    p.add_argument("--overlap", type=int, metavar="PX", help="of the windows (default: a quarter)")
    p.add_argument(
        "--max-pixels", type=int, metavar="N", help="of a plain image; 0 for any number (default: 178,956,970)"
    )
    scene = p.add_argument_group("scenes")
    scene.add_argument("--bands", metavar="R,G,B", help="band numbers from 1 (default: the first three)")
    scene.add_argument("--gsd", type=float, metavar="M", help="metres a pixel shown to the model (default: as it is)")
    scene.add_argument("--aoi", metavar="FILE", help="polygons (GeoJSON, GeoPackage); only what is inside is done")
    scene.add_argument("--memory", default="2GiB", metavar="SIZE", help="beside the weights (default: 2GiB)")
    scene.add_argument("--min-area", type=float, default=0.0, metavar="M2", help="leave smaller regions out of vectors")
    scene.add_argument("--simplify", type=float, default=0.0, metavar="PX", help="simplify polygons, in pixels")
    scene.add_argument(
        "--remote", action="store_true", help="let files that name data on a network (WMS, VRT) fetch it"
    )
    scene.add_argument("--restart", action="store_true", help="forget what an interrupted run has done")
    return p


def scene_options(args: argparse.Namespace):
    """The options of scenes as the package takes them; needs the extra "geo"."""
    from skysense_o.scenes.scene import SceneOptions, parse_bytes

    try:
        bands = tuple(int(word) for word in args.bands.split(",")) if args.bands else None
    except ValueError as error:
        raise ValueError(f"--bands {args.bands!r} are not numbers: write them as 4,3,2") from error
    memory = parse_bytes(args.memory)
    return SceneOptions(
        bands, args.gsd, args.aoi, args.window, args.overlap, memory, args.threshold, remote=args.remote
    )


def stems_of(paths: list[Path]) -> list[str]:
    """Names for the results; images that share a stem keep their suffix or folder, so that none is overwritten."""
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
        return Vocabulary.of([(n, *s) for n, s in zip(table.classes, table.synonyms)], background), table.colors
    if args.open_world:
        from skysense_o.data.open_world import open_world

        return open_world(background)
    if args.classes is None and args.classes_file is None:
        raise ValueError("no words: give --classes, --classes-file, --dataset or --open-world, or ask --interactive")
    if args.classes_file:
        if not Path(args.classes_file).is_file():
            raise FileNotFoundError(f"no file of class names at {args.classes_file!r}")
        lines = Path(args.classes_file).read_text().splitlines()
        return Vocabulary.of([line for line in lines if line.strip()], background), None
    return Vocabulary.parse(args.classes, args.background), None


def check(args: argparse.Namespace) -> list[str]:
    """The formats to save; errors that need no model come first, so that nothing is loaded or written in vain."""
    formats = [word.strip() for word in args.save.split(",") if word.strip()]
    unknown = [word for word in formats if word not in ALL_FORMATS]
    if unknown or not formats:
        raise ValueError(f"--save {args.save!r}: {unknown or 'nothing'} is not among {', '.join(ALL_FORMATS)}")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold} is out of range: 0 to 1")
    if min(args.min_area, args.simplify) < 0:
        raise ValueError("--min-area and --simplify are 0 or more")
    ancestors = [Path(args.output), *Path(args.output).parents]
    blocked = next((p for p in ancestors if p.exists() and not p.is_dir()), None)
    if blocked:
        raise ValueError(f"--output {args.output!r}: {str(blocked)!r} is a file: give a folder")
    return formats


def goes_as_scene(path: Path, formats: list[str], args: argparse.Namespace) -> bool:
    """Whether a file is read piece by piece, with its place on the ground.

    Raises:
        ModuleNotFoundError: it must be, and the extra "geo" is not installed.
    """
    asked = set(formats) & set(SCENE_FORMATS) or args.bands or args.gsd is not None or args.aoi
    try:
        if not path.is_file() or not (
            asked or ("probabilities" not in formats and is_georeferenced(path, args.remote))
        ):
            return False
    except (OSError, ValueError):  # whatever is wrong with it is told when it is read
        return False
    try:
        scene_tools()
    except ModuleNotFoundError as error:
        if asked:
            raise
        logging.warning("%s; %s is read as a plain image, its place is lost", error, printable(path.name))
        return False
    return True


def read(path: Path, args: argparse.Namespace) -> RGBImage:
    """A plain image; what was done to show it is told."""
    image = read_image(path, max_pixels=args.max_pixels)
    for note in image.record.notes:
        logging.warning("%s: %s", printable(path.name), note)
    return image


def run() -> int:
    args = parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("skysense_o").setLevel(logging.INFO)
    logging.getLogger("rasterio").setLevel(logging.ERROR)  # GDAL remarks on harmless oddities of TIFFs
    args.weights = args.weights or ("mini" if args.task == "segment" else "mini_vqa")
    if args.task != "segment":
        return whole_images(args)
    from skysense_o.inference.export import save
    from skysense_o.inference.predictor import Predictor

    if args.interactive:
        return interactive(args)
    vocabulary, colors = words_of(args)
    formats, images = check(args), find_images(args.input)
    scenes = {path for path in images if goes_as_scene(path, formats, args)}
    known = {}
    if len(images) == 1 and not scenes:  # its error is the error of the whole call, known before the model is loaded
        known = {images[0]: read(images[0], args)}
    if len(images) == 1 and scenes:
        scene_tools().check_scene(images[0], formats, scene_options(args))
    predictor = Predictor.from_pretrained(
        args.weights, args.device, args.config_file, args.precision, args.trust_checkpoint
    )
    processes = None
    if "WORLD_SIZE" in os.environ:  # started by torchrun or Accelerate
        from accelerate import PartialState

        processes = PartialState(cpu=predictor.model.device.type == "cpu")
    settings = {
        "weights": predictor.source,
        "weights_sha256": predictor.sha256,
        "words": [list(phrases) for phrases in vocabulary.phrases],
        "background": list(vocabulary.background),
        "precision": args.precision,
        "device": str(predictor.model.device),
    }

    def plain(path: Path, stem: str) -> tuple[list[Path], list[dict]]:
        image, wanted = known.get(path) or read(path, args), "probabilities" in formats
        windows = {"window": args.window, "overlap": args.overlap}
        found = predictor(image, vocabulary, threshold=args.threshold, probabilities=wanted, **windows)
        record = {**settings, "threshold": found.threshold, "input": printable(path.name)}
        return save(found, image.rgb, Path(args.output), stem, formats, record, colors), found.areas()

    def scene(path: Path, stem: str) -> tuple[list[Path], list[dict]]:
        options = {"min_area": args.min_area, "simplify": args.simplify, "restart": args.restart}
        return scene_tools().run_scene(
            predictor, path, vocabulary, Path(args.output), stem, formats, scene_options(args),
            colors=colors, processes=processes, **options,
        )  # fmt: skip

    failed: list[str] = []
    progress = tqdm(list(zip(images, stems_of(images))), unit="image", disable=len(images) == 1)
    for path, stem in progress:
        try:
            written, rows = scene(path, stem) if path in scenes else plain(path, stem)
        except USER_ERRORS as error:
            failed.append(f"error: {message(error)}")
            continue
        tqdm.write("\n".join(map(printable, written)))
        rows = [row for row in rows if row["pixels"] or not args.open_world]
        if rows:
            tqdm.write(table_of(rows))
    if failed:
        print("\n".join(failed), file=sys.stderr)
    return 0 if not failed else 2 if len(images) == 1 else 1


def interactive(args: argparse.Namespace) -> int:
    """The prompt loop, on one image."""
    from skysense_o.data.open_world import open_world
    from skysense_o.inference.predictor import Predictor
    from skysense_o.interactive.dialogue import Dialogue
    from skysense_o.interactive.opening import open_upload
    from skysense_o.interactive.session import Session

    check(args)
    images = find_images(args.input)
    if len(images) > 1:
        raise ValueError(f"--interactive takes one image and --input gives {len(images)}")
    image = open_upload(images[0], alone=False)
    session = Session(
        Predictor.from_pretrained(args.weights, args.device, args.config_file, args.precision, args.trust_checkpoint),
        image,
    )
    loop = Dialogue(session, Path(args.output), lambda: open_world()[0])
    try:
        if args.classes:
            loop.cmdqueue.append(f"words {args.classes}")
        loop.cmdloop()
    finally:
        session.close()
    return 0


def whole_images(args: argparse.Namespace) -> int:
    """--task classify: the names of an image, ranked. --task ask: the answers to questions about it."""
    import torch

    from skysense_o.inference.classify import classify, load_vqa_model
    from skysense_o.inference.predictor import Predictor

    if args.task == "ask" and not all(question.strip() for question in args.question or [""]):
        raise ValueError('--task ask needs --question "..."')
    names = words_of(args)[0].classes if args.task == "classify" else ()
    images = find_images(args.input)
    if args.task == "ask":
        model = load_vqa_model(args.weights, args.device)
    else:
        model = Predictor.from_pretrained(args.weights, args.device, args.config_file, args.precision).model
    Path(args.output).mkdir(parents=True, exist_ok=True)
    for path, stem in zip(images, stems_of(images)):
        image, written = read(path, args).filled(), Path(args.output) / f"{stem}_{args.task}.json"
        body = {"input": printable(path.name), "weights": args.weights}
        if args.task == "ask":
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
            said = model.answer([pixels] * len(args.question), args.question)
            body["answers"] = [{"question": q, "answer": a} for q, a in zip(args.question, said, strict=True)]
            print(*(f"{printable(path.name)}: {one['question']} {one['answer']}" for one in body["answers"]), sep="\n")
        else:
            rows = classify(model, image, names)
            body["names"] = [{"name": name, "cosine": round(score, 4)} for name, score in rows]
            print(f"{printable(path.name)}\n{tabulate(rows[:10], ['name', 'cosine'], floatfmt='.3f')}")
        written.write_text(json.dumps(body, indent=1))
        print(printable(written))
    return 0


def table_of(rows: list[dict]) -> str:
    """Class, pixels, share, and square metres where they are known."""
    heads, known = ["class", "pixels", "share"], rows[0].get("area_m2") is not None
    lines = [
        [row["name"], row["pixels"], f"{100 * row['share']:.1f} %", *([f"{row['area_m2']:,.0f}"] if known else [])]
        for row in rows
    ]
    heads += ["m2"] if known else []
    return tabulate(lines, heads, intfmt=",", colalign=("left", *["right"] * (len(heads) - 1)))


if __name__ == "__main__":
    sys.exit(exit_code(run))
