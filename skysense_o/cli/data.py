"""Prepare, check and look at data sets."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from skysense_o.cli.check_data import add_check_arguments, run_check
from skysense_o.shipped_files import shipped_file


def add_data_arguments(p: ArgumentParser) -> None:
    """Add the commands of `skysense-o data`. All except `check` are scripts with their own options."""
    steps = p.add_subparsers(dest="step", required=True, metavar="check|show|prepare")
    text = "check a data set, and print a manifest to compare with other copies"
    add_check_arguments(steps.add_parser("check", help=text, description=text))
    steps.add_parser("show", help="draw training samples of a data set as an image", add_help=False)
    text = "convert a data set from the publisher's files to the files that this project reads"
    prepare = steps.add_parser("prepare", help=text, description=text)
    names = sorted(recipe_scripts())
    more = "for the options of one data set: skysense-o data prepare NAME --help"
    prepare.add_argument("name", nargs="?", choices=names, metavar="NAME", help=f"{', '.join(names)}; {more}")


def run_data(args: Namespace) -> int:
    """Run `skysense-o data check`; returns the exit code.

    Raises:
        ValueError: `data prepare` without the name of a data set.
    """
    if args.step == "prepare":
        raise ValueError(f"data prepare needs the name of a data set: {', '.join(sorted(recipe_scripts()))}")
    return run_check(args)


def recipe_scripts() -> dict[str, str]:
    """Name of a data set -> path of its script, relative to the checkout; data sets without a script are left out."""
    scripts = shipped_file("datasets").glob("prepare_*.py")
    return {script.stem.removeprefix("prepare_"): f"datasets/{script.name}" for script in scripts}
