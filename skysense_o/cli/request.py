"""Check a command line of segment, scene, classify or ask, before a model is loaded."""

# Nothing here imports torch, so that mistakes are answered at once.
from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from skysense_o.cli.arguments import ALL_FORMATS
from skysense_o.image_io import RGBImage, find_images, is_georeferenced, printable, read_image, stems_of
from skysense_o.inference.pixel_size import reduction
from skysense_o.inference.segmentation import classes_by_id
from skysense_o.scenes.georeference import scene_tools
from skysense_o.scenes.options import SCENE_FORMATS, SceneOptions, SceneOutputs, parse_bytes
from skysense_o.scenes.stac import item_image
from skysense_o.shipped_files import find_config
from skysense_o.vocabulary import Vocabulary, read_class_file
from skysense_o.weight_paths import find_weights
from skysense_o.whole_files import check_writable
from skysense_o.words import split_words

OPEN_WORLD_SHARE = 0.001
"""With --open-world, classes with a smaller share of the pixels are left out of legend and table."""


@dataclass(frozen=True)
class Request:
    """The checked arguments.

    Attributes:
        args: the parsed command line.
        formats: formats to save.
        paths, stems: the images, and the stems of their result files.
        items: for images that were given as STAC items: path of the image -> path of the item.
        scenes: the paths that are segmented as scenes.
        vocabulary: None where no classes are needed.
        colors: RGB per class, or None.
        image: the image, if there is only one and it is not a scene.
    """

    args: Namespace
    formats: list[str]
    paths: list[Path]
    stems: list[str]
    items: dict[Path, Path]
    scenes: frozenset[Path]
    vocabulary: Vocabulary | None
    colors: list | None
    image: RGBImage | None

    @property
    def min_share(self) -> float:
        return OPEN_WORLD_SHARE if self.args.open_world else 0.0

    def outputs(self, path: Path, stem: str) -> SceneOutputs:
        """Return which files to write for a scene and how, from the command's options."""
        args, share, item = self.args, self.min_share, self.items.get(path)
        return SceneOutputs(
            Path(args.output), self.formats, stem, self.colors, args.min_area, args.simplify, share, item
        )


def check_request(args: Namespace) -> Request:
    """Check all arguments and files that can be checked without torch.

    Raises:
        ValueError, FileNotFoundError: an argument is wrong, a file is missing, or the only image cannot be read. A
            single image is read here; several images are read later.
    """
    formats = _check_values(args)
    args.weights = args.weights or ("mini" if args.task == "segment" else "mini_vqa")
    args.input = [*args.input, *getattr(args, "files", ())]
    if not args.input:
        raise ValueError("no image: give files, folders or globs in quotes")
    given = find_images(args.input)
    named = {Path(word) for word in args.input}  # only STAC items that are named in full: patterns may match other JSON
    is_item = {path: path.suffix == ".json" and path in named for path in given}
    paths = [item_image(path, args.asset) if is_item[path] else path for path in given]
    items = {image: path for image, path in zip(paths, given) if image != path}
    _check_files(args, paths)
    if args.interactive and len(paths) > 1:
        given = ", ".join(map(printable, args.input))
        raise ValueError(f"--interactive takes one image, and {len(paths)} were given ({given}): give one of them")
    unused = [name for name in ("classes_file", "dataset", "open_world", "background", "threshold") if vars(args)[name]]
    if args.interactive and unused:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ValueError(f"--interactive takes words by --classes or when it runs: leave out {options}")
    vocabulary, colors, image, scenes = None, None, None, frozenset()
    if (args.task == "segment" and not args.interactive) or args.task == "classify":
        vocabulary, colors = vocabulary_of(args)
        classes_by_id(vocabulary, args.threshold)  # no class may have the name of id 0
    if args.task == "segment" and not args.interactive:
        scenes = frozenset(path for path in paths if _is_scene(path, formats, args))
        if len(paths) == 1 and not scenes:
            image = read_plain(paths[0], args)
    request = Request(args, formats, paths, stems_of(paths), items, scenes, vocabulary, colors, image)
    if len(paths) == 1 and scenes:
        scene_tools("check").check_scene(paths[0], request.outputs(paths[0], ""), scene_options(args))
    return request


def _check_values(args: Namespace) -> list[str]:
    """Check the values of options; returns the formats to save."""
    formats = [word.strip() for word in args.save.split(",") if word.strip()]
    unknown = [word for word in formats if word not in ALL_FORMATS]
    if unknown or not formats:
        what = f"unknown formats {unknown}" if unknown else "no format"
        raise ValueError(f"--save {args.save!r}: {what}: choose among {', '.join(ALL_FORMATS)}")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold} is out of range: 0 to 1")
    reduction(args.pixel_size, ())  # raises an error if the pixel size is out of range
    if min(args.min_area, args.simplify) < 0:
        raise ValueError("--min-area and --simplify are out of range: 0 or more")
    if args.task == "ask" and not all(question.strip() for question in args.question or [""]):
        raise ValueError('no question: give --question "..."')
    scene_options(args)
    return formats


def _check_files(args: Namespace, paths: list[Path]) -> None:
    """Check that the files of the command line exist, and that the output folder can be created."""
    if len(paths) == 1 and not paths[0].is_file():
        read_image(paths[0])  # raises the error of a missing image
    if args.config_file:
        find_config(args.config_file)
    if args.classes_file and not Path(args.classes_file).is_file():
        raise FileNotFoundError(f"no classes file at {args.classes_file!r}")
    if args.aoi and not Path(args.aoi).is_file():
        raise FileNotFoundError(f"no area of interest at {args.aoi!r}")
    find_weights(args.weights)
    ancestors = [Path(args.output), *Path(args.output).parents]
    blocked = next((p for p in ancestors if p.exists() and not p.is_dir()), None)
    if blocked:
        raise ValueError(f"--output {args.output!r}: {str(blocked)!r} is a file: give a folder")
    check_writable(Path(args.output))


def scene_options(args: Namespace) -> SceneOptions:
    """The options of scenes as the package takes them."""
    try:
        bands = tuple(int(word) for word in args.bands.split(",")) if args.bands else None
    except ValueError as error:
        raise ValueError(f"--bands {args.bands!r} are not numbers: write them as 4,3,2") from error
    memory = parse_bytes(args.memory)
    return SceneOptions(
        bands, args.gsd, args.aoi, args.window, args.overlap, memory, args.threshold, remote=args.remote
    )


def vocabulary_of(args: Namespace) -> tuple[Vocabulary, list | None]:
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
        other = ", --open-world or --interactive" if args.task == "segment" else " or --open-world"
        raise ValueError(f"no classes: give --classes, --classes-file, --dataset{other}")
    if args.classes_file:
        return Vocabulary.of(read_class_file(args.classes_file), background), None
    return Vocabulary.parse(args.classes, args.background), None


def _is_scene(path: Path, formats: list[str], args: Namespace) -> bool:
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


def read_plain(path: Path, args: Namespace) -> RGBImage:
    """Read a plain image, and log how it was converted."""
    image = read_image(path, max_pixels=args.max_pixels)
    for note in image.record.notes:
        logging.warning("%s: %s", printable(path.name), note)
    return image
