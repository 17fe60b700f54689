"""The command of the review: the page, the exchange with other programs, agreement, and the end."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

FORMS = ("label-studio", "coco")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All but --work, which every step has."""
    parser.add_argument(
        "--reviewer", default="", metavar="NAME", help="who decides; the page asks where it is not given"
    )
    parser.add_argument(
        "--round", type=int, default=1, metavar="N", help="from 2 on: what reviewers disagree on (default: 1)"
    )
    parser.add_argument("--names", metavar="FILE", help="names to offer beside those of the regions, one a line")
    parser.add_argument("--host", default="127.0.0.1", help="who may come: this machine only (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7870)
    parser.add_argument("--agreement", action="store_true", help="kappa, alpha and the disagreements, and no page")
    parser.add_argument("--export", choices=FORMS, help="write regions for another program: --to FILE")
    parser.add_argument("--to", metavar="FILE", help="of --export")
    parser.add_argument("--import", dest="source", metavar="FILE", help="decisions from what another program wrote")
    parser.add_argument("--finish", action="store_true", help="write review/final: what most reviewers want")


def run_review(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: options that do not go together. FileNotFoundError: nothing to review, or no such file.
    """
    from skysense_o.data_engine.review.session import Review

    if (args.export is None) != (args.to is None):
        raise ValueError("--export FORM and --to FILE go together")
    if args.round < 1:
        raise ValueError(f"--round {args.round} is out of range: 1, 2, ...")
    review = Review(Path(args.work))
    for line in review.log.bad:
        print(f"warning: {line}", file=sys.stderr)
    if args.source:
        _import(review, Path(args.source), args)
    if args.export:
        _export(review, args.export, Path(args.to), args.reviewer or None)
    if args.agreement:
        from skysense_o.data_engine.review.agreement import agreement

        print(agreement(review).text())
    if args.finish:
        _finish(review)
    if not (args.source or args.export or args.agreement or args.finish):
        _serve(review, args)


def _import(review, path: Path, args: argparse.Namespace) -> None:
    from skysense_o.data_engine.review.coco import from_coco
    from skysense_o.data_engine.review.exchange import take_over
    from skysense_o.data_engine.review.label_studio import from_label_studio

    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if isinstance(data, dict) and {"images", "annotations", "categories"} <= set(data):
        who = args.reviewer or "coco"
        found = {(who, tile): rows for tile, rows in from_coco(review, data).items()}
    elif isinstance(data, list):
        found = from_label_studio(review, data, args.reviewer or "label-studio")
    else:
        raise ValueError(f"{path} is neither a COCO file nor Label Studio's JSON, a list of tasks")
    done: Counter = Counter()
    for (who, tile), rows in sorted(found.items()):
        done += take_over(review, who, tile, rows, args.round)
    what = ", ".join(f"{count} {action}" for action, count in sorted(done.items())) or "nothing new"
    tiles, people = ({key[k] for key in found} for k in (1, 0))
    print(f"{len(tiles)} tiles of {len(review.tiles)}, by {', '.join(sorted(people)) or 'nobody'}: {what}")
    if len(tiles) < len(review.tiles):
        print(f"{len(review.tiles) - len(tiles)} tiles have no annotation there; nothing was decided on them")


def _export(review, form: str, path: Path, reviewer: str | None) -> None:
    from skysense_o.data_engine.review.coco import to_coco
    from skysense_o.data_engine.review.exchange import UNNAMED
    from skysense_o.data_engine.review.label_studio import labelling_config, to_label_studio

    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "coco":
        path.write_text(json.dumps(to_coco(review, reviewer)))
        print(f"{len(review.tiles)} tiles -> {path}")
        return
    path.write_text(json.dumps(to_label_studio(review, reviewer)))
    said = {d.name for history in review.log.history.values() for d in history if d.name}
    config = path.with_suffix(".xml")
    config.write_text(labelling_config(review.tiles.names() | said | {UNNAMED}))
    print(f"{len(review.tiles)} tiles -> {path}; the project's labelling interface -> {config}")


def _finish(review) -> None:
    from skysense_o.data_engine.review.finish import finish

    done = finish(review)
    print(
        f"{done.tiles} tiles: {done.kept} regions named, {done.rejected} rejected -> {review.work / 'review' / 'final'}"
    )
    if done.open:
        print(f"{len(done.open)} regions are left out, and ignored by who trains; --round 2 asks for them:")
        for tile, region, why in done.open[:20]:
            print(f"  {tile}, region {region}: {why}")
        if len(done.open) > 20:
            print(f"  and {len(done.open) - 20} more")


def _serve(review, args: argparse.Namespace) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: nothing is told to anybody
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the review page needs gradio: pip install -e ".[app]"', name="gradio") from error
    from skysense_o.data_engine.review.page import CSS, ReviewPage, build_page, page_script
    from skysense_o.interactive.serving import serve

    names = Path(args.names).read_text().splitlines() if args.names else []
    root = Path(tempfile.mkdtemp(prefix="skysense_o_review_"))
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    try:
        page = ReviewPage(review, names, args.reviewer, args.round)
        options = {"css": CSS, "head": page_script(), "title": "The review"}
        serve(build_page(page), root, args.host, args.port, block=True, **options)
    finally:
        shutil.rmtree(root, ignore_errors=True)
