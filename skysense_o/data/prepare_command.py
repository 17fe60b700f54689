"""The command line that all datasets/prepare_*.py share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from skysense_o.data.catalog import spec_of
from skysense_o.data.prepare import Recipe, pairs_of, prepare_all
from skysense_o.data.zip_source import entries_of
from skysense_o.errors import exit_code


def parser(description: str, choices: dict[str, Recipe] | None = None, option: str = "") -> argparse.ArgumentParser:
    """The options that all scripts share; `option` chooses between several recipes."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--source", nargs="+", required=True, metavar="PATH", help="the publisher's files: folders or zips")
    p.add_argument("--output", metavar="DIR", help="output folder; default: <DETECTRON2_DATASETS>/<name>")
    p.add_argument("--val-list", metavar="FILE", help="stems of the val images, one per line; all others are train")
    if choices:
        p.add_argument(option, required=True, choices=sorted(choices), dest="choice")
    return p


def run_recipe(description: str, recipe: Recipe | dict[str, Recipe], option: str = "") -> int:
    """The command line of a script. Returns 0, or 1 if some images could not be prepared."""
    choices = recipe if isinstance(recipe, dict) else None
    args = parser(description, choices, option).parse_args()
    recipe = choices[args.choice] if choices else recipe
    output = Path(args.output) if args.output else spec_of(recipe.spec).root
    for source in map(Path, args.source):
        if source.is_dir() and (output.resolve() == source.resolve() or source.resolve() in output.resolve().parents):
            raise ValueError(f"--output {output} is in --source {source}, which is never changed: choose another")
    pairs = pairs_of(recipe, entries_of(args.source), args.val_list)
    count, errors = prepare_all(recipe, pairs, output)
    splits = {split: sum(p.split == split for p in pairs) for split in dict.fromkeys(p.split for p in pairs)}
    listed = ", ".join(f"{split} {number}" for split, number in splits.items())
    print(f"{len(pairs)} images ({listed}), {count} windows in {output}")
    print(f"Check them: python tools/check_dataset.py {recipe.spec}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def main(description: str, recipe: Recipe | dict[str, Recipe], option: str = "") -> int:
    """Call `run_recipe`; an error of the user is printed as one line."""
    return exit_code(lambda: run_recipe(description, recipe, option))
