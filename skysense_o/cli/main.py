"""The command `skysense-o`, with one command for each thing that the project does."""

from __future__ import annotations

import runpy
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import skysense_o
from skysense_o.errors import exit_code, install_extra
from skysense_o.shipped_files import shipped_file


@dataclass(frozen=True)
class Command:
    """One command of `skysense-o`.

    Attributes:
        add: module and function that adds its options, as "arguments.add_segment_arguments".
        run: module and function that runs it; "" for a script, see `_script_of`.
        text: what it does.
        examples: command lines, without the program's name.
    """

    add: str
    run: str
    text: str
    examples: tuple[str, ...]


COMMANDS = {
    "segment": Command(
        "arguments.add_segment_arguments", "segment.run_task", "a mask for every class that you name",
        ('town.jpg --classes "building|house,road,tree"', '"survey/*.jpg" --classes-file words.txt --save labels,json',
         'town.jpg --classes "solar panel" --background "roof,ground" --threshold 0.4', "town.jpg --open-world",
         "town.jpg --interactive"),
    ),
    "scene": Command(
        "arguments.add_scene_arguments", "segment.run_task", "georeferenced images of any size: GeoTIFFs and polygons",
        ('scene.tif --classes "water,forest"', 'item.json --classes "water,forest" --save geotiff,stac',
         'scene.tif --classes "water,forest" --bands 4,3,2 --gsd 10 --aoi area.geojson'),
    ),
    "classify": Command(
        "arguments.add_classify_arguments", "segment.run_task", "rank classes for whole images",
        ("town.jpg --dataset ucmerced", 'town.jpg --classes "harbor,forest,runway"'),
    ),
    "ask": Command(
        "arguments.add_ask_arguments", "segment.run_task", "answer questions about images",
        ('town.jpg --question "How many planes are there?"',),
    ),
    "app": Command("", "", "a web page to try the model on this machine", ("--port 7861",)),
    "train": Command(
        "train.add_train_arguments", "train.run_train", "train a model",
        ("--config-file configs/mini/finetune.yaml OUTPUT_DIR output/mini",
         "--config-file configs/mini/finetune.yaml --resume OUTPUT_DIR output/mini"),
    ),
    "eval": Command(
        "train.add_eval_arguments", "train.run_train", "evaluate a model on data sets",
        ("--config-file configs/mini/finetune.yaml MODEL.WEIGHTS mini",),
    ),
    "data": Command(
        "data.add_data_arguments", "data.run_data", "prepare, check and look at data sets",
        ("check --list", "check dubai", "show dubai_train", "prepare wbs_si --source WaterBodiesDatasetPreprocessed"),
    ),
    "engine": Command(
        "engine_arguments.add_engine_arguments", "engine.run_engine", "unlabelled images to a labelled data set",
        ('all --input "survey/*.jpg" --classes "building|house,road,tree" --work output/survey',
         "review --work output/survey"),
    ),
    "doctor": Command(
        "doctor.add_doctor_arguments", "doctor.run_doctor", "check the installation, and install what pip did not",
        ("", "--install"),
    ),
    "export": Command(
        "export.add_export_arguments", "export.run_export", "write the model as ONNX",
        ("--output mini.onnx", '--output mine.onnx --weights mine.safetensors --words "building|house,road"'),
    ),
}  # fmt: skip
SHELLS = ("bash", "zsh", "tcsh")


def run_command(words: Sequence[str] | None = None) -> int:
    """Run `skysense-o`.

    Args:
        words: the command line after the program's name; None for sys.argv.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if words is None else words)
    script, named = _script_of(words)
    if script:
        sys.argv = [f"skysense-o {' '.join(words[:named])}", *words[named:]]
        path = shipped_file(script)
        # runpy.run_path would put the script's name into sys.argv, and so into the help text.
        exec(compile(path.read_text(), path, "exec"), {"__name__": "__main__", "__file__": str(path)})
        return 0  # most scripts end the process themselves
    return exit_code(lambda: _run_here(words))


def _run_here(words: list[str]) -> int | None:
    parser = _parser(*words[:1])
    args, rest = parser.parse_known_args(words)
    if "files" in args and not any(word.startswith("-") for word in rest):
        args.files += rest  # argparse takes files from one place only, but people also write files behind options
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.completion:
        return _print_completion(args.completion)
    if args.command is None:
        _parser("").print_help()
        return 2
    return _named(COMMANDS[args.command].run)(args)


def _parser(*complete: str) -> ArgumentParser:
    """Build the argument parser.

    Only the subcommands named in `complete` get their options: adding options imports the command's module, and
    importing every module is slow.
    """
    parser = ArgumentParser(
        prog="skysense-o",
        description=skysense_o.__doc__,
        epilog="skysense-o COMMAND --help explains a command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"skysense-o {skysense_o.__version__}")
    parser.add_argument("--completion", choices=SHELLS, help="print a completion script for this shell")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        examples = "\n".join(f"skysense-o {name} {example}".rstrip() for example in command.examples)
        about = f"{command.text[0].upper()}{command.text[1:]}.\n\n{examples}"
        formatting = {"description": about, "formatter_class": RawDescriptionHelpFormatter}
        if name not in complete:
            commands.add_parser(name, help=command.text, **formatting)
        elif command.run:
            _named(command.add)(commands.add_parser(name, help=command.text, **formatting))
        else:
            script = runpy.run_path(str(shipped_file(_script_of([name])[0])))
            commands.add_parser(name, help=command.text, parents=[script["parser"]()], add_help=False, **formatting)
    return parser


def _named(function: str):
    """Import "module.function" of this folder."""
    module, name = function.split(".")
    return getattr(import_module(f"skysense_o.cli.{module}"), name)


def _script_of(words: Sequence[str]) -> tuple[str, int]:
    """The script that runs a command line, and how many words name the script; ("", 0) if a module here runs it.

    The scripts come with the code. They have their own options and are run unchanged.
    """
    if words[:1] == ["app"]:
        return "demo/app.py", 1
    if words[:2] == ["data", "show"]:
        return "tools/visualize_data.py", 2
    if words[:2] == ["data", "prepare"]:
        return _named("data.recipe_scripts")().get(words[2] if words[2:] else "", ""), 3
    return "", 0


def _print_completion(shell: str) -> int:
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"completion needs shtab: {install_extra('completion')}", name="shtab") from error
    print(shtab.complete(_parser(*COMMANDS), shell))
    return 0
